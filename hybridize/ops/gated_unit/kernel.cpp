// silu(gate) up and its gradient, value by value.

#include "native.hpp"

namespace {

constexpr Index share_of_values = 1 << 14;  // values of one task

template <class T> struct Arguments {
  Index values, threads;
  const T *gate, *up;
  T* out;
  const T* grad;
  T *grad_gate, *grad_up;
};

template <class T> void run(const Arguments<T>& a, bool backward) {
  share((a.values + share_of_values - 1) / share_of_values, a.threads, [&](Index task) {
    const Index begin = task * share_of_values, left = a.values - begin;
    one_token::each<T>(left < share_of_values ? left : share_of_values, [&](Index i, Index count) {
      const Index at = begin + i;
      const Vec<T> gate = load_part(a.gate + at, count), up = load_part(a.up + at, count);
      const Vec<T> share = T(1) / (T(1) + exp<T>(-gate)), open = gate * share;
      if (!backward) return store_part(a.out + at, open * up, count);
      const Vec<T> grad = load_part(a.grad + at, count);
      store_part(a.grad_up + at, grad * open, count);
      store_part(a.grad_gate + at, grad * up * (share + open * (T(1) - share)), count);
    });
  });
}

}  // namespace

extern "C" {
void forward_float(const void* a) { run(*static_cast<const Arguments<float>*>(a), false); }
void forward_double(const void* a) { run(*static_cast<const Arguments<double>*>(a), false); }
void backward_float(const void* a) { run(*static_cast<const Arguments<float>*>(a), true); }
void backward_double(const void* a) { run(*static_cast<const Arguments<double>*>(a), true); }
}

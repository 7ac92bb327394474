// The gated norm and its gradient, one token and one group of channels at a time.
//
// Legend: R tokens of all rows, E channels, G groups of channels, P channels per group. With
// u = y silu(z) and r = 1 / sqrt(mean of u^2 + eps), the output is w u r.

#include <cmath>

#include "native.hpp"

namespace {

constexpr Index share_of_tokens = 256;  // tokens of one task, whose gradients of w are summed

template <class T> struct Arguments {
  Index tokens, channels, groups, threads;
  const T* y;
  Index y_token;  // stride
  const T* z;  // null: u = y
  Index z_token;
  const T *weight, *eps;  // (E), (1)
  T* out;                 // (R, E)
  const T* grad;          // (R, E)
  T *grad_y, *grad_z;     // (R, E), null with z
  T* grad_weight;         // (tasks, E)
};

template <class T> inline Vec<T> sigmoid(Vec<T> z) { return T(1) / (T(1) + exp<T>(-z)); }

// Call visit(first channel, channels) for the vectors of a group.
template <class T, class Visit> inline void each(Index width, Visit visit) {
  for (Index c = 0; c < width; c += lanes<T>) visit(c, width - c < lanes<T> ? width - c : lanes<T>);
}

template <class T, bool gated> inline Vec<T> gate_of(const T* y, const T* z, Index count) {
  const Vec<T> value = load_part(y, count);
  if constexpr (!gated) return value;
  const Vec<T> gate = load_part(z, count);
  return value * gate * sigmoid<T>(gate);
}

template <class T, bool gated> void norm(const Arguments<T>& a, Index token, Index first, Index width) {
  const T *y = a.y + token * a.y_token + first, *z = a.z + token * a.z_token + first;
  T* out = a.out + token * a.channels + first;
  Vec<T> squares = {};
  each<T>(width, [&](Index c, Index count) {
    const Vec<T> u = gate_of<T, gated>(y + c, z + c, count);
    squares += u * u;
    store_part(out + c, u, count);
  });
  const T r = 1 / std::sqrt(sum_lanes<T>(squares) / T(width) + *a.eps);
  each<T>(width, [&](Index c, Index count) {
    const Vec<T> scaled = load_part(out + c, count) * r;
    store_part(out + c, scaled * load_part(a.weight + first + c, count), count);
  });
}

// `grad_weight` is the sum for the channels of this group, to which the token is added.
template <class T, bool gated>
void differentiate(const Arguments<T>& a, Index token, Index first, Index width, T* grad_weight) {
  const T *y = a.y + token * a.y_token + first, *z = a.z + token * a.z_token + first;
  const Index at = token * a.channels + first;
  Vec<T> squares = {}, along = {};
  each<T>(width, [&](Index c, Index count) {
    const Vec<T> u = gate_of<T, gated>(y + c, z + c, count);
    squares += u * u;
    along += u * load_part(a.grad + at + c, count) * load_part(a.weight + first + c, count);
  });
  const T r = 1 / std::sqrt(sum_lanes<T>(squares) / T(width) + *a.eps);
  const T back = sum_lanes<T>(along) / T(width) * r * r;
  each<T>(width, [&](Index c, Index count) {
    const Vec<T> value = load_part(y + c, count), grad = load_part(a.grad + at + c, count);
    Vec<T> open = spread(T(1)), slope = {};  // silu of the gate and its derivative
    if constexpr (gated) {
      const Vec<T> gate = load_part(z + c, count), share = sigmoid<T>(gate);
      open = gate * share;
      slope = share + open * (T(1) - share);
    }
    const Vec<T> u = value * open;
    const Vec<T> reached = r * (grad * load_part(a.weight + first + c, count) - u * back);
    store_part(a.grad_y + at + c, reached * open, count);
    if constexpr (gated) store_part(a.grad_z + at + c, reached * value * slope, count);
    store_part(grad_weight + c, load_part(grad_weight + c, count) + grad * u * r, count);
  });
}

template <class T, bool gated> void run(const Arguments<T>& a, bool backward) {
  const Index width = a.channels / a.groups;
  share((a.tokens + share_of_tokens - 1) / share_of_tokens, a.threads, [&](Index task) {
    const Index begin = task * share_of_tokens;
    const Index end = begin + share_of_tokens < a.tokens ? begin + share_of_tokens : a.tokens;
    T* grad_weight = backward ? a.grad_weight + task * a.channels : nullptr;
    if (backward) std::memset(grad_weight, 0, a.channels * sizeof(T));
    for (Index token = begin; token < end; ++token)
      for (Index first = 0; first < a.channels; first += width)
        if (backward)
          differentiate<T, gated>(a, token, first, width, grad_weight + first);
        else
          norm<T, gated>(a, token, first, width);
  });
}

template <class T> void choose(const void* arguments, bool backward) {
  const Arguments<T>& a = *static_cast<const Arguments<T>*>(arguments);
  a.z ? run<T, true>(a, backward) : run<T, false>(a, backward);
}

}  // namespace

extern "C" {
void forward_float(const void* a) { choose<float>(a, false); }
void forward_double(const void* a) { choose<double>(a, false); }
void backward_float(const void* a) { choose<float>(a, true); }
void backward_double(const void* a) { choose<double>(a, true); }
}

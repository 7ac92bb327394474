// One token of Mamba-2: convolution, recurrence, gate and norm, one row and group of heads at a time.
//
// Legend: B batch, H heads, P channels per head, G groups of heads that share B and C, N state size,
// E = H P inner width, X = E + 2 G N convolved channels, K taps of the convolution.

#include <cmath>

#include "native.hpp"

namespace {

constexpr Index work_of_a_thread = 1 << 15;  // values of the state; fewer are not worth a thread

template <class T> struct Arguments {
  Index rows, heads, channels, groups, states, taps, threads;  // B H P G N K
  double eps;
  const T* projected;  // (B, E + X + H): z, x B C, dt
  Index projected_row;  // stride
  const T *weight, *bias;         // (X, K), (X) or null
  const T *dt_bias, *rate, *own;  // (H): dt_bias, A_log, D
  const T* norm;                  // (E)
  const Index* segments;          // (B) or null
  T *kept, *state;                // (B, X, K - 1), (B, H, P, N): before the token, then after it
  T* out;                         // (B, E)
};

template <class T> inline Vec<T> silu(Vec<T> z) { return z / (T(1) + exp<T>(-z)); }

// Call visit(first, how many) for the vectors of `count` values.
template <class Visit> inline void each(Index count, Index step, Visit visit) {
  for (Index i = 0; i < count; i += step) visit(i, count - i < step ? count - i : step);
}

// out = silu(convolution) of the channels from `first` on, whose kept inputs move on by one.
template <class T>
void convolve(const Arguments<T>& a, const T* inputs, T* kept, Index first, Index count, T* out) {
  const Index taps = a.taps;
  for (Index c = 0; c < count; ++c) {
    const T *weight = a.weight + (first + c) * taps, input = inputs[first + c];
    T* earlier = kept + (first + c) * (taps - 1);
    T sum = a.bias ? a.bias[first + c] : T(0);
    for (Index k = 0; k + 1 < taps; ++k) {
      sum += weight[k] * earlier[k];
      earlier[k] = k + 2 < taps ? earlier[k + 1] : input;
    }
    out[c] = sum + weight[taps - 1] * input;
  }
  each(count, lanes<T>, [&](Index c, Index width) {
    store_part(out + c, silu<T>(load_part(out + c, width)), width);
  });
}

// One head: the state decays, takes in dt x B, and is read by C; D x comes on top.
template <class T>
void recur(const Arguments<T>& a, Index head, T dt, const T* x, const T* write, const T* read,
           T* state, T* out) {
  dt += a.dt_bias[head];
  dt = dt > T(20) ? dt : std::log1p(std::exp(dt));
  const T decay = std::exp(-dt * std::exp(a.rate[head]));
  for (Index p = 0; p < a.channels; ++p) {
    const T value = dt * x[p];
    T* row = state + p * a.states;
    Vec<T> sum = {};
    each(a.states, lanes<T>, [&](Index n, Index width) {
      const Vec<T> next = load_part(row + n, width) * decay + load_part(write + n, width) * value;
      store_part(row + n, next, width);
      sum += next * load_part(read + n, width);
    });
    out[p] = sum_lanes<T>(sum) + a.own[head] * x[p];
  }
}

// The channels of a group: times silu(z), over their root mean square, times their scale.
template <class T>
void norm(const Arguments<T>& a, const T* gate, const T* scale, Index count, T* out) {
  Vec<T> squares = {};
  each(count, lanes<T>, [&](Index c, Index width) {
    const Vec<T> gated = load_part(out + c, width) * silu<T>(load_part(gate + c, width));
    squares += gated * gated;
    store_part(out + c, gated, width);
  });
  const T r = 1 / std::sqrt(sum_lanes<T>(squares) / T(count) + T(a.eps));
  each(count, lanes<T>, [&](Index c, Index width) {
    store_part(out + c, load_part(out + c, width) * r * load_part(scale + c, width), width);
  });
}

template <class T> void step(const Arguments<T>& a, Index row, Index group) {
  const Index inner = a.heads * a.channels, per_group = a.heads / a.groups;
  const Index first = group * per_group * a.channels, count = per_group * a.channels;
  const Index convolved = inner + 2 * a.groups * a.states;
  T* out = a.out + row * inner + first;
  if (a.segments && a.segments[row] == 0) {
    std::memset(out, 0, count * sizeof(T));
    return;
  }
  const T *z = a.projected + row * a.projected_row, *inputs = z + inner, *dt = inputs + convolved;
  T* kept = a.kept + row * convolved * (a.taps - 1);
  Space<T> space(count + 2 * a.states + 3 * 64);
  T *x = space.take(count), *write = space.take(a.states), *read = space.take(a.states);
  const Index writes = inner + group * a.states, reads = writes + a.groups * a.states;
  convolve(a, inputs, kept, first, count, x);
  convolve(a, inputs, kept, writes, a.states, write);
  convolve(a, inputs, kept, reads, a.states, read);
  for (Index h = 0; h < per_group; ++h) {
    const Index head = group * per_group + h, channel = h * a.channels;
    T* state = a.state + (row * a.heads + head) * a.channels * a.states;
    recur(a, head, dt[head], x + channel, write, read, state, out + channel);
  }
  norm(a, z + first, a.norm + first, count, out);
}

template <class T> void run(const Arguments<T>& a) {
  const Index worth = a.rows * a.heads * a.channels * a.states / work_of_a_thread + 1;
  share(a.rows * a.groups, worth < a.threads ? worth : a.threads,
        [&](Index task) { step(a, task / a.groups, task % a.groups); });
}

}  // namespace

extern "C" {
void step_float(const void* a) { run(*static_cast<const Arguments<float>*>(a)); }
void step_double(const void* a) { run(*static_cast<const Arguments<double>*>(a)); }
}

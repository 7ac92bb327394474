// One token of Mamba-2: convolution, recurrence, gate and norm, one row and group of heads at a time.
//
// Legend: B batch, H heads, P channels per head, G groups of heads that share B and C, N state size,
// E = H P inner width, X = E + 2 G N convolved channels, K taps of the convolution.

#include <cmath>

#include "native.hpp"

namespace {

using namespace one_token;

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

// One head: the state decays, takes in dt x B, and is read by C; D x comes on top.
template <class T>
void recur(const Arguments<T>& a, Index head, T dt, const T* x, const T* write, const T* read,
           T* state, T* out) {
  dt = softplus(dt + a.dt_bias[head]);
  const T decay = std::exp(-dt * std::exp(a.rate[head]));
  for (Index p = 0; p < a.channels; ++p) {
    const T value = dt * x[p];
    T* row = state + p * a.states;
    Vec<T> sum = {};
    each<T>(a.states, [&](Index n, Index width) {
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
  each<T>(count, [&](Index c, Index width) {
    const Vec<T> gated = load_part(out + c, width) * silu<T>(load_part(gate + c, width));
    squares += gated * gated;
    store_part(out + c, gated, width);
  });
  const T r = 1 / std::sqrt(sum_lanes<T>(squares) / T(count) + T(a.eps));
  each<T>(count, [&](Index c, Index width) {
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
  const Taps<T> taps{a.weight, a.bias, a.taps};
  T* kept = a.kept + row * convolved * (a.taps - 1);
  Space<T> space(count + 2 * a.states + 3 * 64);
  T *x = space.take(count), *write = space.take(a.states), *read = space.take(a.states);
  const Index writes = inner + group * a.states, reads = writes + a.groups * a.states;
  convolve(taps, inputs + first, kept, first, count, x);
  convolve(taps, inputs + writes, kept, writes, a.states, write);
  convolve(taps, inputs + reads, kept, reads, a.states, read);
  for (Index h = 0; h < per_group; ++h) {
    const Index head = group * per_group + h, channel = h * a.channels;
    T* state = a.state + (row * a.heads + head) * a.channels * a.states;
    recur(a, head, dt[head], x + channel, write, read, state, out + channel);
  }
  norm(a, z + first, a.norm + first, count, out);
}

template <class T> void run(const Arguments<T>& a) {
  share_out(a.rows * a.groups, a.rows * a.heads * a.channels * a.states, a.threads,
            [&](Index task) { step(a, task / a.groups, task % a.groups); });
}

}  // namespace

extern "C" {
void step_float(const void* a) { run(*static_cast<const Arguments<float>*>(a)); }
void step_double(const void* a) { run(*static_cast<const Arguments<double>*>(a)); }
}

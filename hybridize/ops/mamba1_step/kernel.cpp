// One token of Mamba: convolution, scan and gate, one row and group of channels at a time.
//
// Legend: B batch, E channels, X shared channels, N state size, K taps of the convolution. A group
// is N channels, which have the same keys and queries.

#include "native.hpp"

namespace {

using namespace one_token;

template <class T> struct Arguments {
  Index rows, channels, shared, block, states, taps, threads;  // B E X, repeated run, N K
  const T* projected;                       // (B, 2 E + 2 X): z, x, B, C
  Index projected_row;                      // stride
  const T *step, *weight, *bias, *dt_bias;  // (B, E), (E, K), (E) or null, (E) or null
  const T *rate, *own;                      // A_log (E, N), D (E)
  const Index* segments;                    // (B) or null
  T *kept, *state;                          // (B, E, K - 1), (B, E, N): before, then after
  T* out;                                   // (B, E)
};

// One channel: the state decays at N rates, takes in dt x B, and is read by C.
template <class T>
T recur(const T* rate, T dt, T x, const T* write, const T* read, Index states, T* state) {
  Vec<T> sum = {};
  each<T>(states, [&](Index n, Index width) {
    const Vec<T> decay = exp<T>(exp<T>(load_part(rate + n, width)) * -dt);
    const Vec<T> next = load_part(state + n, width) * decay + load_part(write + n, width) * (dt * x);
    store_part(state + n, next, width);
    sum += next * load_part(read + n, width);
  });
  return sum_lanes<T>(sum);
}

template <class T> void step(const Arguments<T>& a, Index row, Index group) {
  const Index count = a.states, first = group * count, at = row * a.channels + first;
  T* out = a.out + at;
  if (a.segments && a.segments[row] == 0) {
    std::memset(out, 0, count * sizeof(T));
    return;
  }
  // All channels of a group lie in one block, so their shared ones lie side by side.
  const Index repeats = a.channels / a.shared;
  const Index source = first / a.block / repeats * a.block + first % a.block;
  const T *z = a.projected + row * a.projected_row, *inputs = z + a.channels;
  const T *write = inputs + a.shared, *read = write + a.shared + first;
  Space<T> space(count + 64);
  T* x = space.take(count);
  convolve(Taps<T>{a.weight, a.bias, a.taps}, inputs + source,
           a.kept + row * a.channels * (a.taps - 1), first, count, x);
  for (Index c = 0; c < count; ++c) {
    const Index channel = first + c;
    const T dt = softplus(a.step[at + c] + (a.dt_bias ? a.dt_bias[channel] : T(0)));
    out[c] = a.own[channel] * x[c] + recur(a.rate + channel * a.states, dt, x[c], write + source,
                                           read, a.states, a.state + (at + c) * a.states);
  }
  each<T>(count, [&](Index c, Index width) {
    store_part(out + c, load_part(out + c, width) * silu<T>(load_part(z + first + c, width)), width);
  });
}

template <class T> void run(const Arguments<T>& a) {
  const Index groups = a.channels / a.states;
  share_out(a.rows * groups, a.rows * a.channels * a.states, a.threads,
            [&](Index task) { step(a, task / groups, task % groups); });
}

}  // namespace

extern "C" {
void step_float(const void* a) { run(*static_cast<const Arguments<float>*>(a)); }
void step_double(const void* a) { run(*static_cast<const Arguments<double>*>(a)); }
}

// One token of Gated DeltaNet, one row and group of heads at a time: convolution, delta rule, norm,
// gate.
//
// Legend: B batch, H heads, P channels per head (of values and of keys), G groups of heads that
// share queries and keys, E = H P inner width, X = 2 G P + E convolved channels, K taps.

#include <cmath>

#include "native.hpp"

namespace {

using namespace one_token;

template <class T> struct Arguments {
  Index rows, heads, channels, groups, taps, threads;  // B H P G K
  double eps, length_eps;
  const T *qkv, *gate, *strength, *step;  // (B, X), (B, E), (B, H), (B, H)
  const T *weight, *bias;                 // (X, K), (X) or null
  const T *dt_bias, *rate, *norm;         // (H): dt_bias, A_log; (P)
  const Index* segments;                  // (B) or null
  T *kept, *state;                        // (B, X, K - 1), (B, H, P, P): before, then after
  T* out;                                 // (B, E)
};

// Give a query or a key this length.
template <class T> void scale(T* values, Index count, T eps, T length) {
  Vec<T> squares = {};
  each<T>(count, [&](Index c, Index width) {
    const Vec<T> part = load_part(values + c, width);
    squares += part * part;
  });
  const T factor = length / std::sqrt(sum_lanes<T>(squares) + eps);
  for (Index c = 0; c < count; ++c) values[c] *= factor;
}

template <class T> T dot(const T* a, const T* b, Index count) {
  Vec<T> sum = {};
  each<T>(count, [&](Index c, Index width) { sum += load_part(a + c, width) * load_part(b + c, width); });
  return sum_lanes<T>(sum);
}

// One head: the state decays, what it holds under the key moves to the value, the query reads it.
template <class T>
void recur(const T* query, const T* key, const T* value, T keep, T strength, Index channels,
           T* state, T* out) {
  for (Index p = 0; p < channels; ++p) {
    T* row = state + p * channels;
    const T change = strength * (value[p] - keep * dot(row, key, channels));
    Vec<T> sum = {};
    each<T>(channels, [&](Index n, Index width) {
      const Vec<T> next = load_part(row + n, width) * keep + load_part(key + n, width) * change;
      store_part(row + n, next, width);
      sum += next * load_part(query + n, width);
    });
    out[p] = sum_lanes<T>(sum);
  }
}

// The channels of a head over their root mean square, times their scale and silu(gate).
template <class T> void norm(const T* gate, const T* weight, Index count, T eps, T* out) {
  const T r = 1 / std::sqrt(dot(out, out, count) / T(count) + eps);
  each<T>(count, [&](Index c, Index width) {
    const Vec<T> scaled = load_part(out + c, width) * r * load_part(weight + c, width);
    store_part(out + c, scaled * silu<T>(load_part(gate + c, width)), width);
  });
}

template <class T> void step(const Arguments<T>& a, Index row, Index group) {
  const Index width = a.channels, per_group = a.heads / a.groups, keys = a.groups * width;
  const Index first = group * per_group, count = per_group * width;
  const Index convolved = 2 * keys + a.heads * width, channel = first * width;
  T* out = a.out + row * a.heads * width + channel;
  if (a.segments && a.segments[row] == 0) {
    std::memset(out, 0, count * sizeof(T));
    return;
  }
  const Taps<T> taps{a.weight, a.bias, a.taps};
  const T* inputs = a.qkv + row * convolved;
  T* kept = a.kept + row * convolved * (a.taps - 1);
  Space<T> space(count + 2 * width + 3 * 64);
  T *value = space.take(count), *query = space.take(width), *key = space.take(width);
  convolve(taps, inputs + group * width, kept, group * width, width, query);
  convolve(taps, inputs + keys + group * width, kept, keys + group * width, width, key);
  convolve(taps, inputs + 2 * keys + channel, kept, 2 * keys + channel, count, value);
  scale(query, width, T(a.length_eps), 1 / std::sqrt(T(width)));
  scale(key, width, T(a.length_eps), T(1));
  for (Index h = 0; h < per_group; ++h) {
    const Index head = first + h, at = row * a.heads + head;
    const T keep = std::exp(-std::exp(a.rate[head]) * softplus(a.step[at] + a.dt_bias[head]));
    const T strength = 1 / (1 + std::exp(-a.strength[at]));
    recur(query, key, value + h * width, keep, strength, width, a.state + at * width * width,
          out + h * width);
    norm(a.gate + at * width, a.norm, width, T(a.eps), out + h * width);
  }
}

template <class T> void run(const Arguments<T>& a) {
  share_out(a.rows * a.groups, a.rows * a.heads * a.channels * a.channels, a.threads,
            [&](Index task) { step(a, task / a.groups, task % a.groups); });
}

}  // namespace

extern "C" {
void step_float(const void* a) { run(*static_cast<const Arguments<float>*>(a)); }
void step_double(const void* a) { run(*static_cast<const Arguments<double>*>(a)); }
}

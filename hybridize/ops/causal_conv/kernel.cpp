// The causal convolution and its gradient, one row and one band of channels at a time.
//
// Legend: B batch, T tokens, D channels, W kept inputs (kernel width - 1). Inputs are numbered as
// their row sees them: the W kept ones from -W to -1, then the real tokens from 0 on.

#include "native.hpp"

namespace {

constexpr Index band = 128;  // channels of one task

template <class T> struct Arguments {
  Index rows, tokens, channels, kept, threads;
  const Index* segments;            // (B, T) or null
  const T *x;                       // (B, T, D), channels side by side
  Index x_row, x_token;             // strides
  const T *weight, *bias, *state;   // (W + 1, D), (D) or null, (B, W, D)
  T *y, *last;                      // (B, T, D), (B, W, D)
  const T *grad_y, *grad_last;
  T *grad_x, *grad_weight, *grad_bias, *grad_state;  // (B, T, D), (B, W + 1, D), (B, D), (B, W, D)
};

// One row as seen by one band of channels: where its inputs and their gradients lie.
template <class T> struct View {
  const Arguments<T>& a;
  const Row& row;
  Index b, d, width;
  const T* zeros;

  const T* input(Index place) const {
    if (place < 0) return a.state + (b * a.kept + a.kept + place) * a.channels + d;
    return a.x + b * a.x_row + row.tokens[place] * a.x_token + d;
  }
  // The first input that a token may see.
  Index first(Index place) const { return row.starts[place] < 0 ? -a.kept : row.starts[place]; }
  const T* seen(Index place, Index lag) const {
    return place - lag < first(place) ? zeros : input(place - lag);
  }
  T* y(Index place) const { return a.y + (b * a.tokens + row.tokens[place]) * a.channels + d; }
  const T* grad_y(Index place) const {
    return a.grad_y + (b * a.tokens + row.tokens[place]) * a.channels + d;
  }
  // The gradient of the output that meets an input `lag` tokens later; zeros if none does.
  const T* answer(Index place, Index lag) const {
    const Index later = place + lag;
    return later < 0 || later >= row.size() || first(later) > place ? zeros : grad_y(later);
  }
  T* grad_input(Index place) const {
    if (place < 0) return a.grad_state + (b * a.kept + a.kept + place) * a.channels + d;
    return a.grad_x + (b * a.tokens + row.tokens[place]) * a.channels + d;
  }
};

// out = start + the sum over taps of a weight per channel times where the tap points.
template <class T>
void mix(T* out, const T* start, const T* const* inputs, const T* const* weights, Index taps,
         Index width) {
  if (taps == 4) {
    const T *x0 = inputs[0], *x1 = inputs[1], *x2 = inputs[2], *x3 = inputs[3];
    const T *w0 = weights[0], *w1 = weights[1], *w2 = weights[2], *w3 = weights[3];
#pragma GCC ivdep
    for (Index d = 0; d < width; ++d)
      out[d] = start[d] + w0[d] * x0[d] + w1[d] * x1[d] + w2[d] * x2[d] + w3[d] * x3[d];
    return;
  }
  for (Index d = 0; d < width; ++d) out[d] = start[d];
  for (Index tap = 0; tap < taps; ++tap) {
    const T *x = inputs[tap], *w = weights[tap];
#pragma GCC ivdep
    for (Index d = 0; d < width; ++d) out[d] += w[d] * x[d];
  }
}

template <class T> void convolve(const View<T>& view) {
  const Arguments<T>& a = view.a;
  const Index taps = a.kept + 1;
  std::vector<const T*> inputs(taps), weights(taps);
  for (Index tap = 0; tap < taps; ++tap) weights[tap] = a.weight + tap * a.channels + view.d;
  for (Index i = 0; i < view.row.size(); ++i) {
    for (Index tap = 0; tap < taps; ++tap) inputs[tap] = view.seen(i, a.kept - tap);
    mix(view.y(i), a.bias ? a.bias + view.d : view.zeros, inputs.data(), weights.data(), taps,
        view.width);
  }
}

// The last inputs of the last document, or their gradient added to the inputs they are.
template <class T, class Visit> void visit_last(const View<T>& view, Visit visit) {
  const Index size = view.row.size(), kept = view.a.kept;
  const Index first = size ? view.first(size - 1) : -kept;
  for (Index w = 0; w < kept; ++w) {
    const Index place = size - kept + w;
    visit((view.b * kept + w) * view.a.channels + view.d, place >= first, place);
  }
}

template <class T> void differentiate(const View<T>& view, T* sums) {
  const Arguments<T>& a = view.a;
  const Index width = view.width, size = view.row.size(), taps = a.kept + 1, n = a.channels;
  std::vector<const T*> grads(taps), weights(taps);
  for (Index lag = 0; lag < taps; ++lag) weights[lag] = a.weight + (a.kept - lag) * n + view.d;
  for (Index place = -a.kept; place < size; ++place) {
    for (Index lag = 0; lag < taps; ++lag) grads[lag] = view.answer(place, lag);
    mix(view.grad_input(place), view.zeros, grads.data(), weights.data(), taps, width);
  }
  visit_last(view, [&](Index at, bool own, Index place) {
    if (!own) return;
    T* grad = view.grad_input(place);
    for (Index d = 0; d < width; ++d) grad[d] += a.grad_last[at + d];
  });

  T* totals[2] = {a.grad_weight + view.b * taps * n + view.d, a.grad_bias + view.b * n + view.d};
  for (Index tap = 0; tap < taps; ++tap)
    for (Index d = 0; d < width; ++d) totals[0][tap * n + d] = 0;
  for (Index d = 0; d < width; ++d) totals[1][d] = 0;
  // Sums over blocks of tokens first, so that rounding does not grow with the length of the row.
  for (Index begin = 0; begin < size; begin += 64) {
    const Index end = begin + 64 < size ? begin + 64 : size;
    for (Index i = 0; i < (taps + 1) * band; ++i) sums[i] = 0;
    for (Index i = begin; i < end; ++i) {
      const T* g = view.grad_y(i);
      for (Index tap = 0; tap < taps; ++tap) {
        const T* x = view.seen(i, a.kept - tap);
        T* sum = sums + tap * band;
#pragma GCC ivdep
        for (Index d = 0; d < width; ++d) sum[d] += g[d] * x[d];
      }
#pragma GCC ivdep
      for (Index d = 0; d < width; ++d) sums[taps * band + d] += g[d];
    }
    for (Index tap = 0; tap < taps; ++tap)
      for (Index d = 0; d < width; ++d) totals[0][tap * n + d] += sums[tap * band + d];
    for (Index d = 0; d < width; ++d) totals[1][d] += sums[taps * band + d];
  }
}

template <class T> void run(const Arguments<T>& a, bool backward) {
  std::vector<Row> rows;
  for (Index b = 0; b < a.rows; ++b)
    rows.emplace_back(a.segments ? a.segments + b * a.tokens : nullptr, a.tokens);
  const Index bands = (a.channels + band - 1) / band;
  share(a.rows * bands, a.threads, [&](Index task) {
    Space<T> space((a.kept + 4) * band);
    T* zeros = space.take(band);
    for (Index d = 0; d < band; ++d) zeros[d] = 0;
    const Index b = task / bands, d = task % bands * band;
    const View<T> view{a, rows[b], b, d, a.channels - d < band ? a.channels - d : band, zeros};
    T* out = backward ? a.grad_x : a.y;
    for (Index t = 0; t < a.tokens; ++t)
      if (a.segments && a.segments[b * a.tokens + t] == 0)
        for (Index i = 0; i < view.width; ++i) out[(b * a.tokens + t) * a.channels + d + i] = 0;
    if (backward) {
      differentiate(view, space.take((a.kept + 2) * band));
      return;
    }
    convolve(view);
    visit_last(view, [&](Index at, bool own, Index place) {
      const T* from = own ? view.input(place) : zeros;
      for (Index i = 0; i < view.width; ++i) a.last[at + i] = from[i];
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

// The recurrence of Mamba and its gradient: one vector of channels at a time, all its states in
// registers or in the nearest cache.
//
// Legend: B batch, T tokens, D channels, G groups of channels that share B and C, N state size per
// channel. A block is as many channels of one group as a vector has lanes; a slab is a run of blocks
// that one task works through, and for which the gradients of B and C are summed.
//
// With a = exp(dt A): h' = a h + dt x B, y = C h' + D x. The backward pass keeps the states at every
// 32nd token and computes those between again.

#include "native.hpp"

namespace {

constexpr Index stride = 32;       // tokens between two states that are kept
constexpr Index slab_width = 256;  // channels of one task

template <class T> struct Arguments {
  Index rows, tokens, channels, groups, states, slabs, threads;
  const Index* segments;           // (B, T) or null
  const T* x;                      // (B, T, D), channels side by side
  Index x_row, x_token;            // strides
  const T* dt;
  Index dt_row, dt_token;
  const T *A;                      // (N, D)
  const T* B;                      // (B, T, G, N), a token's values side by side
  Index B_row, B_token;
  const T* C;
  Index C_row, C_token;
  const T *D, *state;              // (D) or null, (B, N, D)
  T *y, *last;                     // (B, T, D), (B, N, D)
  const T *grad_y, *grad_last;
  T *grad_x, *grad_dt, *grad_A;    // (B, T, D), (B, T, D), (B, N, D)
  T *grad_B, *grad_C;              // (slabs of a group, B, T, G, N)
  T *grad_D, *grad_state;          // (B, D), (B, N, D)
};

template <class T> struct Block {
  const Arguments<T>& a;
  const Row& row;
  Index b, g, d, width, slab;

  Index at(Index place) const { return (b * a.tokens + row.tokens[place]) * a.channels + d; }
  Vec<T> x(Index place) const {
    return load_part(a.x + b * a.x_row + row.tokens[place] * a.x_token + d, width);
  }
  Vec<T> dt(Index place) const {
    return load_part(a.dt + b * a.dt_row + row.tokens[place] * a.dt_token + d, width);
  }
  const T* B(Index place) const {
    return a.B + b * a.B_row + row.tokens[place] * a.B_token + g * a.states;
  }
  const T* C(Index place) const {
    return a.C + b * a.C_row + row.tokens[place] * a.C_token + g * a.states;
  }
  // Of a (B, N, D) tensor.
  Index entry(Index n) const { return (b * a.states + n) * a.channels + d; }
  // Of a (slabs, B, T, G, N) tensor.
  Index shared(Index place) const {
    return (((slab * a.rows + b) * a.tokens + row.tokens[place]) * a.groups + g) * a.states;
  }

  // Take the states past one token; keep them, and the decays, if there is a place for them.
  template <bool keep> Vec<T> step(Index place, T* h, const T* A, T* decays, T* states) const {
    const Vec<T> dt = this->dt(place), written = dt * x(place);
    const T *B = this->B(place), *C = this->C(place);
    const bool begins = row.begins(place);
    Vec<T> y = {};
    for (Index n = 0; n < a.states; ++n) {
      const Vec<T> decay = begins ? Vec<T>{} : exp<T>(dt * load(A + n * lanes<T>));
      const Vec<T> before = begins ? Vec<T>{} : load(h + n * lanes<T>);
      const Vec<T> after = decay * before + written * B[n];
      store(h + n * lanes<T>, after);
      y += after * C[n];
      if (keep) store(decays + n * lanes<T>, decay), store(states + n * lanes<T>, after);
    }
    return y;
  }

  void load_all(T* to, const T* from, bool per_row) const {
    for (Index n = 0; n < a.states; ++n)
      store(to + n * lanes<T>,
            from ? load_part(from + (per_row ? entry(n) : n * a.channels + d), width) : Vec<T>{});
  }
  void store_all(T* to, const T* from) const {
    for (Index n = 0; n < a.states; ++n)
      store_part(to + entry(n), load(from + n * lanes<T>), width);
  }

  void forward(Space<T> space) const {
    const Index size = a.states * lanes<T>;
    T *h = space.take(size), *A = space.take(size);
    load_all(A, a.A, false), load_all(h, a.state, true);
    const Vec<T> own = a.D ? load_part(a.D + d, width) : Vec<T>{};
    for (Index i = 0; i < row.size(); ++i)
      store_part(a.y + at(i), step<false>(i, h, A, nullptr, nullptr) + own * x(i), width);
    store_all(a.last, h);
  }

  void backward(Space<T> space, bool first) const {
    const Index size = a.states * lanes<T>, count = row.size();
    T *h = space.take(size), *A = space.take(size), *grad_h = space.take(size);
    T *grad_A = space.take(size), *parts = space.take(2 * (size + lanes<T> * lanes<T>));
    T *decays = space.take(stride * size), *states = space.take((stride + 1) * size);
    T* kept = space.take((count / stride + 1) * size);
    load_all(A, a.A, false), load_all(h, a.state, true), load_all(grad_h, a.grad_last, true);
    std::memset(grad_A, 0, size * sizeof(T));
    for (Index i = 0; i < count; ++i) {
      if (i % stride == 0) std::memcpy(kept + i / stride * size, h, size * sizeof(T));
      step<false>(i, h, A, nullptr, nullptr);
    }
    Vec<T> grad_D = {};
    for (Index begin = (count - 1) / stride * stride; count && begin >= 0; begin -= stride) {
      const Index end = begin + stride < count ? begin + stride : count;
      std::memcpy(states, kept + begin / stride * size, size * sizeof(T));
      std::memcpy(h, states, size * sizeof(T));
      for (Index i = begin; i < end; ++i)
        step<true>(i, h, A, decays + (i - begin) * size, states + (i - begin + 1) * size);
      for (Index i = end - 1; i >= begin; --i)
        grad_D += answer(i, A, decays + (i - begin) * size, states + (i - begin) * size, grad_h,
                         grad_A, parts, first);
    }
    store_all(a.grad_state, grad_h), store_all(a.grad_A, grad_A);
    store_part(a.grad_D + b * a.channels + d, grad_D, width);
  }

  // Take the gradient of the states back past one token and write those of its inputs; return the
  // gradient of D. `states` holds the states before the token, and then those after it.
  Vec<T> answer(Index place, const T* A, const T* decays, const T* states, T* grad_h, T* grad_A,
                T* parts, bool first) const {
    const Index size = a.states * lanes<T>;
    const Vec<T> grad_y = load_part(a.grad_y + at(place), width);
    const Vec<T> dt = this->dt(place), x = this->x(place), written = dt * x;
    const T *B = this->B(place), *C = this->C(place);
    T *parts_B = parts, *parts_C = parts + round_up(a.states, lanes<T>) * lanes<T>;
    Vec<T> by_decay = {}, by_write = {};
    for (Index n = 0; n < a.states; ++n) {
      const Index k = n * lanes<T>;
      const Vec<T> grad = load(grad_h + k) + grad_y * C[n];
      const Vec<T> left = grad * load(decays + k);
      const Vec<T> faded = left * load(states + k);
      store(grad_h + k, left);
      store(parts_B + k, grad * written);
      store(parts_C + k, load(states + size + k) * grad_y);
      store(grad_A + k, load(grad_A + k) + faded * dt);
      by_decay += faded * load(A + k);
      by_write += grad * B[n];
    }
    const Vec<T> own = a.D ? load_part(a.D + d, width) : Vec<T>{};
    store_part(a.grad_x + at(place), dt * by_write + own * grad_y, width);
    store_part(a.grad_dt + at(place), by_decay + x * by_write, width);
    sum_channels(a.grad_B + shared(place), parts_B, first);
    sum_channels(a.grad_C + shared(place), parts_C, first);
    return grad_y * x;
  }

  // Sum the lanes of each state's vector.
  void sum_channels(T* out, T* parts, bool first) const {
    for (Index n = 0; n < a.states; n += lanes<T>) {
      Vec<T> values[lanes<T>];
      for (Index i = 0; i < lanes<T>; ++i)
        values[i] = n + i < a.states ? load(parts + (n + i) * lanes<T>) : Vec<T>{};
      const Index count = a.states - n < lanes<T> ? a.states - n : lanes<T>;
      const Vec<T> sums = sum_each<T>(values);
      store_part(out + n, first ? sums : sums + load_part(out + n, count), count);
    }
  }
};

template <class T> void clear_padding(const Arguments<T>& a, Index b, Index d, Index width) {
  for (Index t = 0; a.segments && t < a.tokens; ++t) {
    if (a.segments[b * a.tokens + t] != 0) continue;
    for (T* out : {a.y, a.grad_x, a.grad_dt})
      if (out) std::memset(out + (b * a.tokens + t) * a.channels + d, 0, width * sizeof(T));
  }
}

template <class T> void run(const Arguments<T>& a, bool backward) {
  std::vector<Row> rows;
  for (Index b = 0; b < a.rows; ++b)
    rows.emplace_back(a.segments ? a.segments + b * a.tokens : nullptr, a.tokens);
  const Index per_group = a.channels / a.groups, size = a.states * lanes<T>;
  share(a.rows * a.groups * a.slabs, a.threads, [&](Index task) {
    const Index slab = task % a.slabs, g = task / a.slabs % a.groups;
    const Index b = task / a.slabs / a.groups, begin = slab * slab_width;
    const Index end = begin + slab_width < per_group ? begin + slab_width : per_group;
    clear_padding(a, b, g * per_group + begin, end - begin);
    if (backward && a.segments)
      for (Index t = 0; t < a.tokens; ++t)
        if (a.segments[b * a.tokens + t] == 0)
          for (T* out : {a.grad_B, a.grad_C})
            std::memset(out + (((slab * a.rows + b) * a.tokens + t) * a.groups + g) * a.states, 0,
                        a.states * sizeof(T));
    const Index room = backward ? size * (2 * stride + 8 + rows[b].size() / stride + 1)
                                  + 2 * lanes<T> * lanes<T>
                                : 2 * size;
    for (Index d = begin; d < end; d += lanes<T>) {
      const Index width = end - d < lanes<T> ? end - d : lanes<T>;
      const Block<T> block{a, rows[b], b, g, g * per_group + d, width, slab};
      if (backward)
        block.backward(Space<T>(room + 256), d == begin);
      else
        block.forward(Space<T>(room + 256));
    }
  });
}

}  // namespace

extern "C" {
void forward_float(const void* a) { run(*static_cast<const Arguments<float>*>(a), false); }
void forward_double(const void* a) { run(*static_cast<const Arguments<double>*>(a), false); }
void backward_float(const void* a) { run(*static_cast<const Arguments<float>*>(a), true); }
void backward_double(const void* a) { run(*static_cast<const Arguments<double>*>(a), true); }
}

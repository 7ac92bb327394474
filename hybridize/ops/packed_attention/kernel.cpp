// Attention within documents and its gradient, one document and one key head at a time.
//
// Legend: N tokens of all rows, M documents, H query heads, G key and value heads, K channels per
// head, L tokens of a document, R queries of one block. A block has all its scores at once, R x L:
// documents are short, so they lie in the cache, and no softmax has to be put together from parts.
// The backward pass computes the scores again.

#include "native.hpp"

namespace {

constexpr Index block = 32;  // R

template <class T> struct Arguments {
  Index documents, heads, groups, width, threads;
  const Index *starts, *lengths;  // (M)
  const T* q;                     // (N, H, K), a token's values side by side
  Index q_token;                  // stride
  const T* k;                     // (N, G, K)
  Index k_token;
  const T* v;
  Index v_token;
  const T *cos, *sin;  // (longest L, K), or null: queries and keys are turned already
  double scale;
  T* out;                        // (N, H, K)
  const T* grad;                 // (N, H, K)
  T *grad_q, *grad_k, *grad_v;  // (N, H, K), (N, G, K), (N, G, K)
};

// A document with one key head. Widths with an underscore are whole vectors; what lies between a
// width and its whole vectors is zero.
template <class T> struct Document {
  const Arguments<T>& a;
  Index start, length, g, K, K_, L_;
  Space<T> space;
  T *keys, *keys_turned, *values, *queries, *scores, *made;  // L x K, K x L, L x K, R x K, R x L, R x K
  T *values_turned, *grads, *slopes, *grad_keys, *grad_values;  // K x L, R x K, R x L, L x K, L x K

  static Index sizes(Index K_, Index L_) {
    return 6 * L_ * K_ + 2 * block * L_ + 3 * block * K_ + 11 * 16;
  }

  Document(const Arguments<T>& a, Index m, Index g)
      : a(a), start(a.starts[m]), length(a.lengths[m]), g(g), K(a.width),
        K_(round_up(K, lanes<T>)), L_(round_up(length, lanes<T>)), space(sizes(K_, L_)) {
    keys = space.take(L_ * K_), keys_turned = space.take(L_ * K_), values = space.take(L_ * K_);
    queries = space.take(block * K_), scores = space.take(block * L_);
    made = space.take(block * K_), grads = space.take(block * K_);
    slopes = space.take(block * L_), values_turned = space.take(L_ * K_);
    grad_keys = space.take(L_ * K_), grad_values = space.take(L_ * K_);
  }

  // Turn the halves of a head by the angles of its position, or back.
  void rotate(T* out, const T* in, Index position, T sign) const {
    const T *cos = a.cos + position * K, *sin = a.sin + position * K;
    const Index half = K / 2;
#pragma GCC ivdep
    for (Index c = 0; c < half; ++c) {
      const T first = in[c], second = in[half + c];
      const T turned = sign > 0 ? sin[c] : sin[half + c], back = sign > 0 ? sin[half + c] : sin[c];
      out[c] = first * cos[c] - sign * second * turned;
      out[half + c] = second * cos[half + c] + sign * first * back;
    }
  }

  // Copy a head of the tokens from `first` on; rows up to `rows` are zeros.
  void gather(T* out, const T* from, Index stride, Index head, Index first, Index count, Index rows,
              bool turned) const {
    for (Index i = 0; i < count; ++i) {
      const T* in = from + (start + first + i) * stride + head * K;
      T* to = out + i * K_;
      if (turned && a.cos)
        rotate(to, in, first + i, T(1));
      else
        std::memcpy(to, in, K * sizeof(T));
      for (Index c = K; c < K_; ++c) to[c] = 0;
    }
    if (rows > count) std::memset(out + count * K_, 0, (rows - count) * K_ * sizeof(T));
  }

  void scatter(T* out, const T* from, Index heads, Index head, Index first, Index count,
               bool turned) const {
    for (Index i = 0; i < count; ++i) {
      T* to = out + ((start + first + i) * heads + head) * K;
      if (turned && a.cos)
        rotate(to, from + i * K_, first + i, T(-1));
      else
        std::memcpy(to, from + i * K_, K * sizeof(T));
    }
  }

  void fetch() {
    gather(keys, a.k, a.k_token, g, 0, length, L_, true);
    turn(keys_turned, L_, keys, K_, L_, K_);
    gather(values, a.v, a.v_token, g, 0, length, L_, false);
  }

  void multiply_by(T* values, T factor, Index count) const {
    for (Index i = 0; i < count; i += lanes<T>) store(values + i, load(values + i) * factor);
  }

  // scores: the shares that each query of a block gives to the tokens up to its own.
  void attend(Index head, Index first, Index count) {
    const Index seen_ = round_up(first + count, lanes<T>);
    gather(queries, a.q, a.q_token, head, first, count, count, true);
    multiply_by(queries, T(a.scale), count * K_);
    multiply(scores, L_, queries, K_, Index(1), keys_turned, L_, count, seen_, K, false);
    for (Index i = 0; i < count; ++i) {
      T* row = scores + i * L_;
      const Index seen = first + i + 1, whole = seen / lanes<T> * lanes<T>;
      Vec<T> most = spread(row[0]), total = {};
      for (Index j = 0; j < whole; j += lanes<T>) {
        const Vec<T> each = load(row + j);
        most = each > most ? each : most;
      }
      T top = most[0];
      for (Index j = 1; j < lanes<T>; ++j) top = most[j] > top ? most[j] : top;
      for (Index j = whole; j < seen; ++j) top = row[j] > top ? row[j] : top;
      for (Index j = 0; j < seen; j += lanes<T>) {
        const Vec<T> share = keep_first<T>(exp<T>(load(row + j) - top), seen - j);
        store(row + j, share);
        total += share;
      }
      const T factor = 1 / sum_lanes<T>(total);
      for (Index j = 0; j < seen; j += lanes<T>) store(row + j, load(row + j) * factor);
      for (Index j = round_up(seen, lanes<T>); j < seen_; j += lanes<T>) store(row + j, Vec<T>{});
    }
  }

  void forward() {
    fetch();
    const Index shared = a.heads / a.groups;
    for (Index head = g * shared; head < (g + 1) * shared; ++head)
      for (Index first = 0; first < length; first += block) {
        const Index count = length - first < block ? length - first : block;
        attend(head, first, count);
        multiply(made, K_, scores, L_, Index(1), values, K_, count, K_, first + count, false);
        scatter(a.out, made, a.heads, head, first, count, false);
      }
  }

  // slopes hold the gradient of the shares; make it that of the scores.
  void differentiate(Index first, Index count) {
    const Index seen_ = round_up(first + count, lanes<T>);
    for (Index i = 0; i < count; ++i) {
      T *share = scores + i * L_, *slope = slopes + i * L_;
      Vec<T> total = {};
      for (Index j = 0; j < seen_; j += lanes<T>) total += load(share + j) * load(slope + j);
      const T mean = sum_lanes<T>(total);
      for (Index j = 0; j < seen_; j += lanes<T>)
        store(slope + j, load(share + j) * (load(slope + j) - mean));
    }
  }

  void backward() {
    fetch();
    turn(values_turned, L_, values, K_, L_, K_);
    std::memset(grad_keys, 0, L_ * K_ * sizeof(T));
    std::memset(grad_values, 0, L_ * K_ * sizeof(T));
    const Index shared = a.heads / a.groups;
    for (Index head = g * shared; head < (g + 1) * shared; ++head)
      for (Index first = 0; first < length; first += block) {
        const Index count = length - first < block ? length - first : block, seen = first + count;
        const Index seen_ = round_up(seen, lanes<T>);
        attend(head, first, count);
        gather(grads, a.grad, a.heads * K, head, first, count, count, false);
        multiply(grad_values, K_, scores, Index(1), L_, grads, K_, seen, K_, count, true);
        multiply(slopes, L_, grads, K_, Index(1), values_turned, L_, count, seen_, K, false);
        differentiate(first, count);
        multiply(grad_keys, K_, slopes, Index(1), L_, queries, K_, seen, K_, count, true);
        multiply(made, K_, slopes, L_, Index(1), keys, K_, count, K_, seen, false);
        multiply_by(made, T(a.scale), count * K_);
        scatter(a.grad_q, made, a.heads, head, first, count, true);
      }
    scatter(a.grad_k, grad_keys, a.groups, g, 0, length, true);
    scatter(a.grad_v, grad_values, a.groups, g, 0, length, false);
  }
};

template <class T> void run(const Arguments<T>& a, bool backward) {
  share(a.documents * a.groups, a.threads, [&](Index task) {
    Document<T> document(a, task / a.groups, task % a.groups);
    backward ? document.backward() : document.forward();
  });
}

}  // namespace

extern "C" {
void forward_float(const void* a) { run(*static_cast<const Arguments<float>*>(a), false); }
void forward_double(const void* a) { run(*static_cast<const Arguments<double>*>(a), false); }
void backward_float(const void* a) { run(*static_cast<const Arguments<float>*>(a), true); }
void backward_double(const void* a) { run(*static_cast<const Arguments<double>*>(a), true); }
}

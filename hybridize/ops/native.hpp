// What the compiled operators share: vectors, exp, small matrix products, threads, documents.
//
// Nothing here is summed in an order that depends on the number of threads.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

using Index = int64_t;

// ---- vectors ---------------------------------------------------------------------------------

template <class T> struct Vector;
template <> struct Vector<float> {
  typedef float Values __attribute__((vector_size(VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr float magic = 12582912.0f, lowest = -87.0f, highest = 88.0f;
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860682030941723e-6f;
  static constexpr int mantissa = 23, bias = 127, terms = 7;
};
template <> struct Vector<double> {
  typedef double Values __attribute__((vector_size(VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr double magic = 6755399441055744.0, lowest = -708.0, highest = 709.0;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
};
template <class T> using Vec = typename Vector<T>::Values;
template <class T> constexpr Index lanes = VECTOR_BYTES / sizeof(T);

constexpr Index round_up(Index count, Index step) { return (count + step - 1) / step * step; }

template <class T> inline Vec<T> load(const T* from) {
  Vec<T> values;
  __builtin_memcpy(&values, from, sizeof values);
  return values;
}

template <class T> inline void store(T* to, Vec<T> values) {
  __builtin_memcpy(to, &values, sizeof values);
}

// The first `width` values, or zeros in the lanes that are no channels.
template <class T> inline Vec<T> load_part(const T* from, Index width) {
  if (width == lanes<T>) return load(from);
  Vec<T> values = {};
  __builtin_memcpy(&values, from, width * sizeof(T));
  return values;
}

template <class T> inline void store_part(T* to, Vec<T> values, Index width) {
  if (width == lanes<T>) return store(to, values);
  __builtin_memcpy(to, &values, width * sizeof(T));
}

// (Minus zero, because plus zero would turn -0 into 0, and cost an instruction.)
template <class T> inline Vec<T> spread(T value) { return value - Vec<T>{}; }

// The first `count` lanes, zeros in the others.
template <class T> inline Vec<T> keep_first(Vec<T> values, Index count) {
  typename Vector<T>::Bits lane;
  for (Index i = 0; i < lanes<T>; ++i) lane[i] = i;
  const Vec<T> zero = {};
  return lane < typename std::remove_reference<decltype(lane[0])>::type(count) ? values : zero;
}

// exp to about one unit in the last place; NaN stays NaN, what underflows is 0.
template <class T> inline Vec<T> exp(Vec<T> x) {
  using V = Vector<T>;
  using Bits = typename V::Bits;
  const Vec<T> low = spread<T>(V::lowest), high = spread<T>(V::highest);
  Vec<T> clipped = x < low ? low : x;
  clipped = clipped > high ? high : clipped;
  const Vec<T> shifted = clipped * T(1.44269504088896340736) + V::magic;
  const Vec<T> count = shifted - V::magic;
  const Vec<T> rest = (clipped - count * V::ln2_high) - count * V::ln2_low;
  T factor = 1;
  for (int i = 2; i <= V::terms; ++i) factor /= i;
  Vec<T> sum = spread<T>(factor);
  for (int i = V::terms; i > 0; --i) {
    factor *= i;
    sum = sum * rest + factor;
  }
  Bits power;
  __builtin_memcpy(&power, &shifted, sizeof power);
  power = (power << V::mantissa) + (Bits{} + (typename std::remove_reference<
      decltype(power[0])>::type(V::bias) << V::mantissa));
  Vec<T> scale;
  __builtin_memcpy(&scale, &power, sizeof scale);
  const Vec<T> found = sum * scale;
  const Vec<T> zero = {}, infinite = spread<T>(T(__builtin_inf()));
  return x < low ? zero : (x > high ? infinite : found);
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, typename Vector<T>::Bits{__VA_ARGS__})
#endif

// Sums of neighbouring lanes, those of a before those of b.
template <class T> inline Vec<T> sum_pairs(Vec<T> a, Vec<T> b) {
  if constexpr (lanes<T> == 16)
    return SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
         + SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  else if constexpr (lanes<T> == 8)
    return SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  else if constexpr (lanes<T> == 4)
    return SHUFFLE(a, b, 0, 2, 4, 6) + SHUFFLE(a, b, 1, 3, 5, 7);
  else
    return SHUFFLE(a, b, 0, 2) + SHUFFLE(a, b, 1, 3);
}

// The sums over the lanes of as many vectors as there are lanes: out[i] = sum of values[i].
template <class T> inline Vec<T> sum_each(Vec<T>* values) {
  for (Index half = lanes<T> / 2; half > 0; half /= 2)
    for (Index i = 0; i < half; ++i) values[i] = sum_pairs<T>(values[2 * i], values[2 * i + 1]);
  return values[0];
}

// a and b lane by lane in turn: the first halves, or the second ones.
template <class T, bool second> inline Vec<T> interleave(Vec<T> a, Vec<T> b) {
  constexpr int n = lanes<T>, h = second ? n / 2 : 0;
  if constexpr (n == 16)
    return SHUFFLE(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3, n + h + 3, h + 4,
                   n + h + 4, h + 5, n + h + 5, h + 6, n + h + 6, h + 7, n + h + 7);
  else if constexpr (n == 8)
    return SHUFFLE(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3, n + h + 3);
  else if constexpr (n == 4)
    return SHUFFLE(a, b, h, n + h, h + 1, n + h + 1);
  else
    return SHUFFLE(a, b, h, n + h);
}

// Copy the transpose of whole blocks: rows and columns are rounded up to whole vectors.
template <class T>
void turn(T* out, Index out_row, const T* a, Index a_row, Index rows, Index columns) {
  constexpr Index n = lanes<T>;
  for (Index r = 0; r < rows; r += n)
    for (Index c = 0; c < columns; c += n) {
      Vec<T> block[n], next[n];
      for (Index i = 0; i < n; ++i) block[i] = load(a + (r + i) * a_row + c);
      for (Index done = 1; done < n; done *= 2) {
        for (Index i = 0; i < n / 2; ++i) {
          next[2 * i] = interleave<T, false>(block[i], block[i + n / 2]);
          next[2 * i + 1] = interleave<T, true>(block[i], block[i + n / 2]);
        }
        for (Index i = 0; i < n; ++i) block[i] = next[i];
      }
      for (Index i = 0; i < n; ++i) store(out + (c + i) * out_row + r, block[i]);
    }
}

template <class T> inline T sum_lanes(Vec<T> values) {
  for (Index half = lanes<T> / 2; half > 0; half /= 2) values = sum_pairs<T>(values, values);
  return values[0];
}

// ---- memory ----------------------------------------------------------------------------------

// Working space of one task, handed out in aligned pieces; not cleared.
template <class T> class Space {
 public:
  explicit Space(Index count)
      : left_(round_up(count, lanes<T>)),
        all_(static_cast<T*>(std::aligned_alloc(64, round_up(left_ * sizeof(T) + 64, 64)))),
        next_(all_.get()) {}
  T* take(Index count) {
    T* piece = next_;
    next_ += round_up(count, 64 / Index(sizeof(T)));
    return piece;
  }

 private:
  struct Free { void operator()(T* p) const { std::free(p); } };
  Index left_;
  std::unique_ptr<T, Free> all_;
  T* next_;
};

// ---- threads ---------------------------------------------------------------------------------

// torch's own thread team (the address of GOMP_parallel), so that no second one competes with it.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
static Parallel torch_team = nullptr;
extern "C" void set_team(void* address) { torch_team = reinterpret_cast<Parallel>(address); }

// Run task(0) ... task(count - 1), each by one thread.
template <class Task> void share(Index count, Index threads, Task task) {
  threads = threads < count ? threads : count;
  if (threads <= 1) {
    for (Index i = 0; i < count; ++i) task(i);
    return;
  }
  struct Job {
    std::atomic<Index> next;
    Index count;
    Task* task;
  } job{{0}, count, &task};
  auto work = [](void* data) {
    Job& mine = *static_cast<Job*>(data);
    for (Index i; (i = mine.next.fetch_add(1)) < mine.count;) (*mine.task)(i);
  };
  if (torch_team) {
    torch_team(work, &job, unsigned(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  for (Index i = 1; i < threads; ++i) others.emplace_back(work, &job);
  work(&job);
  for (auto& other : others) other.join();
}

// ---- documents -------------------------------------------------------------------------------

// The real tokens of one row in order, and for each the place in this list where its document
// starts; -1 for the first document, which goes on from the state that is handed in.
struct Row {
  std::vector<Index> tokens, starts;
  Row(const Index* segments, Index num_tokens) {
    tokens.reserve(num_tokens), starts.reserve(num_tokens);
    Index latest = 0, start = -1;
    for (Index t = 0; t < num_tokens; ++t) {
      const Index document = segments ? segments[t] : 1;
      if (document == 0) continue;
      if (latest != 0 && document != latest) start = Index(tokens.size());
      latest = document;
      tokens.push_back(t), starts.push_back(start);
    }
  }
  Index size() const { return Index(tokens.size()); }
  bool begins(Index place) const { return starts[place] == place; }
};

// ---- matrix products -------------------------------------------------------------------------

// Which part of a square operand is not zero: rows see columns up to theirs, or from theirs on.
enum class Part { whole, lower, upper, lower_out };

template <class T, int R, int C>
inline void multiply_block(T* out, Index out_row, const T* a, Index a_row, Index a_column,
                           const T* b, Index b_row, Index depth, bool add) {
  Vec<T> sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      sum[r][c] = add ? load(out + r * out_row + c * lanes<T>) : Vec<T>{};
  for (Index k = 0; k < depth; ++k) {
    Vec<T> columns[C];
    for (int c = 0; c < C; ++c) columns[c] = load(b + k * b_row + c * lanes<T>);
    for (int r = 0; r < R; ++r) {
      const Vec<T> factor = spread(a[r * a_row + k * a_column]);
      for (int c = 0; c < C; ++c) sum[r][c] += factor * columns[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(out + r * out_row + c * lanes<T>, sum[r][c]);
}

template <class T, int R>
inline void multiply_rows(T* out, Index out_row, const T* a, Index a_row, Index a_column,
                          const T* b, Index b_row, Index columns, Index depth, bool add) {
  Index c = 0;
  for (; c + 2 * lanes<T> <= columns; c += 2 * lanes<T>)
    multiply_block<T, R, 2>(out + c, out_row, a, a_row, a_column, b + c, b_row, depth, add);
  for (; c < columns; c += lanes<T>)
    multiply_block<T, R, 1>(out + c, out_row, a, a_row, a_column, b + c, b_row, depth, add);
}

// The rows from `r` on in blocks of R, the few left over in smaller ones; see `multiply`.
template <class T, int R>
inline void multiply_from(Index r, T* out, Index out_row, const T* a, Index a_row, Index a_column,
                          const T* b, Index b_row, Index rows, Index columns, Index depth,
                          bool add, Part part) {
  for (; r + R <= rows; r += R) {
    const Index first = part == Part::upper ? r : 0;
    const Index last = part == Part::lower && r + R < depth ? r + R : depth;
    const Index seen = part == Part::lower_out ? round_up(r + R, lanes<T>) : columns;
    multiply_rows<T, R>(out + r * out_row, out_row, a + r * a_row + first * a_column, a_row,
                        a_column, b + first * b_row, b_row, seen < columns ? seen : columns,
                        last - first, add);
  }
  if constexpr (R > 1)
    multiply_from<T, R / 2>(r, out, out_row, a, a_row, a_column, b, b_row, rows, columns, depth,
                            add, part);
}

// out (rows x columns) = or += a (rows x depth) b (depth x columns); columns are whole vectors.
template <class T>
void multiply(T* out, Index out_row, const T* a, Index a_row, Index a_column, const T* b,
              Index b_row, Index rows, Index columns, Index depth, bool add,
              Part part = Part::whole) {
  constexpr int block = VECTOR_BYTES == 64 ? 8 : 4;  // as many sums as there are registers for
  multiply_from<T, block>(0, out, out_row, a, a_row, a_column, b, b_row, rows, columns, depth, add,
                          part);
}

// ---- pieces of rows --------------------------------------------------------------------------

// For operators that turn a run of tokens of one document into small matrix products.
namespace pieces {

struct Piece {
  Index begin, size;  // in the list of the row's real tokens
  bool fresh;         // the state before it is zero
};

inline std::vector<Piece> cut(const Row& row, Index longest) {
  std::vector<Piece> pieces;
  for (Index i = 0; i < row.size(); ++i) {
    const bool fresh = row.begins(i);
    if (fresh || pieces.empty() || pieces.back().size == longest) pieces.push_back({i, 0, fresh});
    ++pieces.back().size;
  }
  return pieces;
}

// Copy a (rows x columns) to its transpose; both with their own row strides.
template <class T>
void transpose(T* out, Index out_row, const T* a, Index a_row, Index rows, Index columns) {
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < columns; ++c) out[c * out_row + r] = a[r * a_row + c];
}

template <class T> T dot(const T* a, const T* b, Index count) {
  Vec<T> sum = {};
  for (Index i = 0; i < count; i += lanes<T>) sum += load(a + i) * load(b + i);
  return sum_lanes<T>(sum);
}

template <class T> void scale(T* values, T factor, Index count) {
  if (factor == T(0)) {
    std::memset(values, 0, count * sizeof(T));
    return;
  }
  for (Index i = 0; i < count; i += lanes<T>) store(values + i, load(values + i) * factor);
}

// out = the rows of `from`, each times a factor and a sign.
template <class T>
void scale_rows(T* out, const T* from, const T* factors, Index rows, Index width, T sign = 1) {
  for (Index i = 0; i < rows; ++i)
    for (Index c = 0; c < width; c += lanes<T>)
      store(out + i * width + c, load(from + i * width + c) * (sign * factors[i]));
}

}  // namespace pieces

// ---- one token -------------------------------------------------------------------------------

// For operators that decode: all of a layer between its projections, for one token of each row.
namespace one_token {

constexpr Index work_of_a_thread = 1 << 15;  // values of the state; fewer are not worth a thread

// Run task(0) ... task(count - 1) on as many threads as that many values of the state are worth.
template <class Task> void share_out(Index count, Index values, Index threads, Task task) {
  const Index worth = values / work_of_a_thread + 1;
  share(count, worth < threads ? worth : threads, task);
}

// Call visit(first, how many) for the vectors of `count` values.
template <class T, class Visit> inline void each(Index count, Visit visit) {
  for (Index i = 0; i < count; i += lanes<T>) visit(i, count - i < lanes<T> ? count - i : lanes<T>);
}

template <class T> inline Vec<T> silu(Vec<T> z) { return z / (T(1) + exp<T>(-z)); }

template <class T> inline T softplus(T x) { return x > T(20) ? x : std::log1p(std::exp(x)); }

template <class T> struct Taps {
  const T *weight, *bias;  // (channels, count), (channels) or null
  Index count;
};

// out = silu(convolution) of the channels from `first` on, whose kept inputs move on by one; the
// inputs and the outputs are those of these channels alone.
template <class T>
void convolve(const Taps<T>& taps, const T* inputs, T* kept, Index first, Index count, T* out) {
  for (Index c = 0; c < count; ++c) {
    const T *weight = taps.weight + (first + c) * taps.count, input = inputs[c];
    T* earlier = kept + (first + c) * (taps.count - 1);
    T sum = taps.bias ? taps.bias[first + c] : T(0);
    for (Index k = 0; k + 1 < taps.count; ++k) {
      sum += weight[k] * earlier[k];
      earlier[k] = k + 2 < taps.count ? earlier[k + 1] : input;
    }
    out[c] = sum + weight[taps.count - 1] * input;
  }
  each<T>(count, [&](Index c, Index width) {
    store_part(out + c, silu<T>(load_part(out + c, width)), width);
  });
}

}  // namespace one_token

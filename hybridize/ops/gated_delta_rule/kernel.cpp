// The gated delta rule and its gradient, one row and one group of heads at a time.
//
// Legend: B batch, T tokens, H heads, P channels per value, G groups of heads that share queries
// and keys, N channels per key, L tokens of one piece. A piece is a run of up to 32 real tokens of
// one document; between pieces only the state S is carried, here laid out as N x P. With s the sums
// of g inside a piece, what a token changes, d = beta f, and what is read follow from
//   f_i = v_i - exp(s_i) S^T k_i - sum over j < i of (k_i . k_j) exp(s_i - s_j) d_j,
//   y_i = exp(s_i) S^T q_i + sum over j <= i of (q_i . k_j) exp(s_i - s_j) d_j,
//   S'  = exp(s_L) S + sum over j of exp(s_L - s_j) k_j d_j^T.
// The forward pass keeps f and the states between pieces; the backward pass solves the transposed
// system for the gradient of f and computes the rest again.

#include "native.hpp"

namespace {

using namespace pieces;

constexpr Index longest = 32;  // tokens of a piece
constexpr Index block = 6;     // tokens solved at once: the rows of a product's inner loop

template <class T> struct Arguments {
  Index rows, tokens, heads, channels, groups, states, threads;
  const Index* segments;  // (B, T) or null
  const T* q;             // (B, T, G, N), a token's values side by side
  Index q_row, q_token;   // strides
  const T* k;
  Index k_row, k_token;
  const T* v;  // (B, T, H, P), a token's values side by side
  Index v_row, v_token;
  const T *g, *beta, *state;  // (B, T, H) twice, (B, H, P, N)
  T *found, *before;          // f: (B, T, H, P), S: (B, H, T / longest + 1, N, P); null: not kept
  T *y, *last;                // (B, T, H, P), (B, H, P, N)
  const T *grad_y, *grad_last;
  T *grad_q, *grad_k, *grad_v;           // (B, T, G, N) twice, (B, T, H, P)
  T *grad_g, *grad_beta, *grad_state;    // (B, T, H) twice, (B, H, P, N)
};

// Everything one head of one row works with. Widths with an underscore are whole vectors; what
// lies between a width and its whole vectors is zero.
template <class T> struct Head {
  const Arguments<T>& a;
  const Row& row;
  Index b, h, g;
  Index P, N, P_, N_;
  Space<T> space;
  T *Q, *K, *KT, *F, *D, *DT, *G;    // L x N twice, N x L, L x P twice, P x L, L x P
  T *alike, *scores, *E, *scratch;   // L x L: k . k and q . k (faded from `compare` on), decays
  T *state, *other, *turned;         // S as N x P, its gradient, either as P x N
  T *narrow, *wide, *grad_keys;      // L x P, L x N, L x N
  T *beta, *sum, *line, *grad_sum;   // one number a token

  static Index sizes(Index P_, Index N_) {
    return longest * (5 * P_ + 5 * N_ + 4 * longest + 4) + 3 * (N_ + lanes<T>) * (P_ + lanes<T>)
           + 32 * 16;
  }

  Head(const Arguments<T>& a, const Row& row, Index b)
      : a(a), row(row), b(b), h(0), g(0), P(a.channels), N(a.states),
        P_(round_up(P, lanes<T>)), N_(round_up(N, lanes<T>)), space(sizes(P_, N_)) {
    Q = space.take(longest * N_), K = space.take(longest * N_), KT = space.take(longest * N_);
    F = space.take(longest * P_), D = space.take(longest * P_), DT = space.take(longest * P_);
    G = space.take(longest * P_), narrow = space.take(longest * P_);
    wide = space.take(longest * N_), grad_keys = space.take(longest * N_);
    alike = space.take(longest * longest), scores = space.take(longest * longest);
    E = space.take(longest * longest), scratch = space.take(longest * longest);
    state = space.take((N_ + lanes<T>) * P_), other = space.take((N_ + lanes<T>) * P_);
    turned = space.take((P_ + lanes<T>) * N_);
    beta = space.take(longest), sum = space.take(longest), line = space.take(longest);
    grad_sum = space.take(longest);
  }

  Index token(const Piece& piece, Index i) const { return row.tokens[piece.begin + i]; }
  Index at(const Piece& piece, Index i) const {
    return (b * a.tokens + token(piece, i)) * a.heads + h;
  }

  void gather(T* out, Index width, Index whole, const T* from, Index stride, const Piece& piece) {
    for (Index i = 0; i < piece.size; ++i) {
      T* target = out + i * whole;
      std::memcpy(target, from + token(piece, i) * stride, width * sizeof(T));
      for (Index c = width; c < whole; ++c) target[c] = 0;
    }
  }

  void scatter(T* out, const T* from, const Piece& piece) {
    for (Index i = 0; i < piece.size; ++i)
      std::memcpy(out + at(piece, i) * P, from + i * P_, P * sizeof(T));
  }

  // Load a state stored as P x N, or zeros; and store one.
  void fetch_state(T* out, const T* from) {
    std::memset(out, 0, N_ * P_ * sizeof(T));
    if (from) transpose(out, P_, from, N, P, N);
  }
  void keep_state(T* out, const T* from) const { transpose(out, N, from, P_, N, P); }

  // Where the state before a piece that is not fresh is kept: such pieces begin 32 tokens apart.
  T* place_of_state(const Piece& piece) const {
    const Index places = a.tokens / longest + 1;
    return a.before + (((b * a.heads + h) * places) + piece.begin / longest) * N * P;
  }
  void copy_state(T* out, Index out_row, const T* from, Index from_row) const {
    for (Index n = 0; n < N; ++n)
      std::memcpy(out + n * out_row, from + n * from_row, P * sizeof(T));
  }

  // Load a piece: queries, keys (also turned), beta and the sums of g.
  void fetch(const Piece& piece) {
    const Index L = piece.size, L_ = round_up(L, lanes<T>);
    gather(Q, N, N_, a.q + b * a.q_row + g * N, a.q_token, piece);
    gather(K, N, N_, a.k + b * a.k_row + g * N, a.k_token, piece);
    for (Index n = 0; n < N; ++n)
      for (Index i = L; i < L_; ++i) KT[n * longest + i] = 0;
    transpose(KT, longest, K, N_, L, N);
    T total = 0;
    for (Index i = 0; i < L; ++i) {
      total += a.g[at(piece, i)];
      sum[i] = total;
      beta[i] = a.beta[at(piece, i)];
    }
    for (Index i = L; i < L_; ++i) sum[i] = total, beta[i] = 0;
  }

  // E: what survives from a write at j to a read at i. Products with keys, faded by it.
  void compare(Index L) {
    const Index L_ = round_up(L, lanes<T>);
    for (T* out : {alike, scores})
      multiply(out, longest, out == alike ? K : Q, N_, Index(1), KT, longest, L, L_, N, false,
               Part::lower_out);
    for (Index i = 0; i < L; ++i)
      for (Index j = 0; j < L_; j += lanes<T>) {
        const Index cell = i * longest + j;
        if (j > i) {
          for (T* out : {E, alike, scores}) store(out + cell, Vec<T>{});
          continue;
        }
        const Vec<T> left = keep_first<T>(exp<T>(sum[i] - load(sum + j)), i + 1 - j);
        store(E + cell, left);
        store(scores + cell, load(scores + cell) * left);
        store(alike + cell, keep_first<T>(load(alike + cell) * left, i - j));
      }
  }

  // line: for each token, what survives of its write at the end of the piece; returns exp(s_L).
  T fade(Index L) {
    const T end = sum[L - 1];
    for (Index i = 0; i < L; i += lanes<T>) store(line + i, exp<T>(end - load(sum + i)));
    return exp<T>(spread(end))[0];
  }

  // line: for each token, what it sees of the state before the piece.
  void raise(Index L) {
    for (Index i = 0; i < L; i += lanes<T>) store(line + i, exp<T>(load(sum + i)));
  }

  // Solve f = start - alike (beta f) from the first token to the last; f is F, beta f is D.
  void solve_down(Index L) {
    for (Index first = 0; first < L; first += block) {
      const Index size = first + block <= L ? block : L - first;
      subtract(F + first * P_, alike + first * longest, longest, Index(1), D, size, first);
      for (Index i = first; i < first + size; ++i) {
        for (Index j = first; j < i; ++j) add_row(F + i * P_, D + j * P_, -alike[i * longest + j]);
        for (Index p = 0; p < P_; p += lanes<T>)
          store(D + i * P_ + p, load(F + i * P_ + p) * beta[i]);
      }
    }
  }

  // Solve z = beta (start - alike^T z) from the last token to the first, in place; what beta
  // multiplies is on the way the gradient of d, of which that of beta is made.
  void solve_up(T* z, const Piece& piece) {
    const Index L = piece.size;
    for (Index stop = L; stop > 0;) {
      const Index size = stop % block ? stop % block : block, first = stop - size;
      subtract(z + first * P_, alike + stop * longest + first, Index(1), longest, z + stop * P_,
               size, L - stop);
      for (Index i = stop - 1; i >= first; --i) {
        for (Index j = i + 1; j < stop; ++j)
          add_row(z + i * P_, z + j * P_, -alike[j * longest + i]);
        a.grad_beta[at(piece, i)] = dot(z + i * P_, F + i * P_, P_);
        scale(z + i * P_, beta[i], P_);
      }
      stop = first;
    }
  }

  // out -= factors (rows x depth) from (depth x P).
  void subtract(T* out, const T* factors, Index row_step, Index column_step, const T* from,
                Index rows, Index depth) {
    for (Index r = 0; r < rows; ++r)
      for (Index d = 0; d < depth; ++d)
        scratch[r * longest + d] = -factors[r * row_step + d * column_step];
    multiply(out, P_, scratch, longest, Index(1), from, P_, rows, P_, depth, true);
  }

  void add_row(T* out, const T* from, T factor) {
    for (Index p = 0; p < P_; p += lanes<T>)
      store(out + p, load(out + p) + load(from + p) * factor);
  }

  void forward(const Piece& piece) {
    const Index L = piece.size;
    fetch(piece);
    gather(F, P, P_, a.v + b * a.v_row + h * P, a.v_token, piece);
    compare(L);
    raise(L);
    if (!piece.fresh) {
      if (a.before) copy_state(place_of_state(piece), P, state, P_);
      scale_rows(wide, K, line, L, N_, T(-1));
      multiply(F, P_, wide, N_, Index(1), state, P_, L, P_, N, true);
    }
    solve_down(L);
    if (a.found) scatter(a.found, F, piece);
    multiply(narrow, P_, scores, longest, Index(1), D, P_, L, P_, L, false, Part::lower);
    if (!piece.fresh) {
      scale_rows(wide, Q, line, L, N_);
      multiply(narrow, P_, wide, N_, Index(1), state, P_, L, P_, N, true);
    }
    scatter(a.y, narrow, piece);
    const T kept = fade(L);
    scale(state, piece.fresh ? T(0) : kept, N_ * P_);
    scale_rows(wide, K, line, L, N_);
    multiply(state, P_, wide, Index(1), N_, D, P_, N, P_, L, true);
  }

  // Turn `other`, the gradient of the state after the piece, into that of the state before it, and
  // write the gradients of the piece's inputs.
  void backward(const Piece& piece, bool first_head) {
    const Index L = piece.size, L_ = round_up(L, lanes<T>);
    fetch(piece);
    compare(L);
    gather(F, P, P_, a.found + (b * a.tokens * a.heads + h) * P, a.heads * P, piece);
    gather(G, P, P_, a.grad_y + (b * a.tokens * a.heads + h) * P, a.heads * P, piece);
    scale_rows(D, F, beta, L, P_);
    for (Index p = 0; p < P; ++p)
      for (Index i = L; i < L_; ++i) DT[p * longest + i] = 0;
    transpose(DT, longest, D, P_, L, P);
    for (Index i = 0; i < longest; ++i) grad_sum[i] = 0;
    if (!piece.fresh) {
      std::memset(state, 0, N_ * P_ * sizeof(T));
      copy_state(state, P_, place_of_state(piece), P);
    }

    // What is written: keys by d. Its gradient reaches f through the transposed system.
    const T kept = fade(L);
    scale_rows(wide, K, line, L, N_);
    T* grad_f = narrow;
    multiply(grad_f, P_, scores, Index(1), longest, G, P_, L, P_, L, false, Part::upper);
    multiply(grad_f, P_, wide, N_, Index(1), other, P_, L, P_, N, true);
    solve_up(grad_f, piece);
    scatter(a.grad_v, grad_f, piece);
    transpose(turned, N_, other, P_, N_, P);
    multiply(grad_keys, N_, D, P_, Index(1), turned, N_, L, N_, P, false);
    T all = 0;
    for (Index i = 0; i < L; ++i) {
      for (Index n = 0; n < N_; n += lanes<T>)
        store(grad_keys + i * N_ + n, load(grad_keys + i * N_ + n) * line[i]);
      const T by_sum = dot(grad_keys + i * N_, K + i * N_, N_);
      grad_sum[i] -= by_sum;
      all += by_sum;
    }
    grad_sum[L - 1] += all + (piece.fresh ? T(0) : kept * dot(other, state, N_ * P_));

    // What is read: scores by d, and the state before the piece.
    multiply(scratch, longest, G, P_, Index(1), DT, longest, L, L_, P, false, Part::lower_out);
    differentiate(scratch, scores, L, T(1));
    multiply(wide, N_, scratch, longest, Index(1), K, N_, L, N_, L, false, Part::lower);
    multiply(grad_keys, N_, scratch, Index(1), longest, Q, N_, L, N_, L, true, Part::upper);
    raise(L);
    if (!piece.fresh) {
      transpose(turned, N_, state, P_, N_, P);
      look_back(wide, Q, G, L, T(1));
    }
    deposit(a.grad_q, wide, piece, first_head);

    // What is looked up: the same for keys, with z, the gradient of what is found.
    multiply(scratch, longest, grad_f, P_, Index(1), DT, longest, L, L_, P, false,
             Part::lower_out);
    differentiate(scratch, alike, L, T(-1));
    multiply(grad_keys, N_, scratch, longest, Index(1), K, N_, L, N_, L, true, Part::lower);
    multiply(grad_keys, N_, scratch, Index(1), longest, K, N_, L, N_, L, true, Part::upper);
    if (!piece.fresh) look_back(grad_keys, K, grad_f, L, T(-1));
    deposit(a.grad_k, grad_keys, piece, first_head);

    // The state before the piece: what is kept of it, what is read and what is looked up in it.
    scale(other, piece.fresh ? T(0) : kept, N_ * P_);
    if (!piece.fresh) {
      scale_rows(wide, Q, line, L, N_);
      multiply(other, P_, wide, Index(1), N_, G, P_, N, P_, L, true);
      scale_rows(wide, K, line, L, N_, T(-1));
      multiply(other, P_, wide, Index(1), N_, grad_f, P_, N, P_, L, true);
    }
    T later = 0;
    for (Index i = L - 1; i >= 0; --i) a.grad_g[at(piece, i)] = later += grad_sum[i];
  }

  // `grad` is the gradient of `faded`, the products times E; make it that of the products, and add
  // what the sums s get from it.
  void differentiate(T* grad, const T* faded, Index L, T sign) {
    const Index L_ = round_up(L, lanes<T>);
    for (Index i = 0; i < L; ++i) {
      Vec<T> total = {};
      for (Index j = 0; j < L_; j += lanes<T>) {
        const Index cell = i * longest + j;
        if (j > i) {
          store(grad + cell, Vec<T>{});
          continue;
        }
        Vec<T> given = load(grad + cell) * sign;
        if (faded == alike) given = keep_first<T>(given, i - j);
        const Vec<T> by_sum = given * load(faded + cell);
        store(grad + cell, given * load(E + cell));
        store(grad_sum + j, load(grad_sum + j) - by_sum);
        total += by_sum;
      }
      grad_sum[i] += sum_lanes<T>(total);
    }
  }

  // grad += sign exp(s) S grad_out: what queries or keys get from reading the state before the
  // piece, which is `turned`; the same products are the gradient of exp(s).
  void look_back(T* grad, const T* asking, const T* grad_out, Index L, T sign) {
    T* read = KT;  // not needed any more once the products are compared
    multiply(read, N_, grad_out, P_, Index(1), turned, N_, L, N_, P, false);
    for (Index i = 0; i < L; ++i) {
      const T factor = sign * line[i];
      grad_sum[i] += factor * dot(read + i * N_, asking + i * N_, N_);
      for (Index n = 0; n < N_; n += lanes<T>)
        store(grad + i * N_ + n, load(grad + i * N_ + n) + load(read + i * N_ + n) * factor);
    }
  }

  void clear_padding(T* out, Index offset, Index width, Index stride) const {
    for (Index t = 0; a.segments && t < a.tokens; ++t)
      if (a.segments[b * a.tokens + t] == 0)
        std::memset(out + (b * a.tokens + t) * stride + offset, 0, width * sizeof(T));
  }

  void deposit(T* out, const T* from, const Piece& piece, bool first_head) {
    for (Index i = 0; i < piece.size; ++i) {
      T* to = out + ((b * a.tokens + token(piece, i)) * a.groups + g) * N;
      for (Index n = 0; n < N; ++n) to[n] = from[i * N_ + n] + (first_head ? T(0) : to[n]);
    }
  }
};

template <class T> void run_forward(Head<T>& head, const std::vector<Piece>& pieces) {
  const Arguments<T>& a = head.a;
  const Index at = (head.b * a.heads + head.h) * a.channels * a.states;
  head.clear_padding(a.y, head.h * a.channels, a.channels, a.heads * a.channels);
  head.fetch_state(head.state, a.state + at);
  for (const Piece& piece : pieces) head.forward(piece);
  head.keep_state(a.last + at, head.state);
}

template <class T>
void run_backward(Head<T>& head, const std::vector<Piece>& pieces, bool first_head) {
  const Arguments<T>& a = head.a;
  const Index at = (head.b * a.heads + head.h) * a.channels * a.states;
  head.clear_padding(a.grad_v, head.h * a.channels, a.channels, a.heads * a.channels);
  for (T* out : {a.grad_g, a.grad_beta}) head.clear_padding(out, head.h, 1, a.heads);
  if (first_head)
    for (T* out : {a.grad_q, a.grad_k})
      head.clear_padding(out, head.g * a.states, a.states, a.groups * a.states);
  head.fetch_state(head.other, a.grad_last + at);
  for (Index k = Index(pieces.size()) - 1; k >= 0; --k) head.backward(pieces[k], first_head);
  head.keep_state(a.grad_state + at, head.other);
}

template <class T> void run(const Arguments<T>& a, bool backward) {
  std::vector<Row> rows;
  std::vector<std::vector<Piece>> cuts;
  for (Index b = 0; b < a.rows; ++b) {
    rows.emplace_back(a.segments ? a.segments + b * a.tokens : nullptr, a.tokens);
    cuts.push_back(cut(rows[b], longest));
  }
  const Index shared = a.heads / a.groups;
  share(a.rows * a.groups, a.threads, [&](Index task) {
    const Index b = task / a.groups;
    Head<T> head(a, rows[b], b);
    head.g = task % a.groups;
    for (Index i = 0; i < shared; ++i) {
      head.h = head.g * shared + i;
      if (backward)
        run_backward(head, cuts[b], i == 0);
      else
        run_forward(head, cuts[b]);
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

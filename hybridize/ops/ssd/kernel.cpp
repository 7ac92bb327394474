// The recurrence of Mamba-2 and its gradient, one row and one group of heads at a time.
//
// Legend: B batch, T tokens, H heads, P channels per head, G groups of heads that share B and C, N
// state size, L tokens of one piece. A piece is a run of up to 64 real tokens of one document:
// inside, the recurrence is attention without a softmax; between pieces only the state h (P x N) is
// carried, here laid out as N x P. With s the sums of dt A inside a piece,
//   y_i = sum over j <= i of (C_i . B_j) exp(s_i - s_j) dt_j x_j + exp(s_i) h C_i + D x_i,
//   h'  = exp(s_L) h + sum over j of exp(s_L - s_j) dt_j x_j B_j.
// The backward pass keeps the states between pieces and computes the rest again.

#include "native.hpp"

namespace {

using namespace pieces;

constexpr Index longest = 64;  // tokens of a piece

template <class T> struct Arguments {
  Index rows, tokens, heads, channels, groups, states, threads;
  const Index* segments;  // (B, T) or null
  const T* x;             // (B, T, H, P), a token's values side by side
  Index x_row, x_token;   // strides
  const T *dt, *A;        // (B, T, H), (H)
  const T* B;             // (B, T, G, N), a token's values side by side
  Index B_row, B_token;
  const T* C;
  Index C_row, C_token;
  const T *D, *state;  // (H) or null, (B, H, P, N)
  T *y, *last;         // (B, T, H, P), (B, H, P, N)
  const T *grad_y, *grad_last;
  T *grad_x, *grad_dt, *grad_A;  // like x, like dt, (B, H)
  T *grad_B, *grad_C;            // (B, T, G, N)
  T *grad_D, *grad_state;        // (B, H), (B, H, P, N)
};

// Everything one head of one row works with. Widths with an underscore are whole vectors; what
// lies between a width and its whole vectors is zero.
template <class T> struct Head {
  const Arguments<T>& a;
  const Row& row;
  Index b, h, g;
  Index P, N, P_, N_;
  Space<T> space;
  T *X, *Bs, *BT, *Cs, *G, *M, *S, *E, *scratch;  // L x P, L x N, N x L, L x N, L x P, 4 times L x L
  T *step, *sum, *state, *other, *turned;  // dt, s; h as N x P, its gradient, either as P x N
  T *narrow, *wide, *XT, *line;            // L x P, L x N, P x L, one piece of scalars
  T *grad_step, *grad_sum;

  static Index sizes(Index P_, Index N_) {
    return longest * (4 * P_ + 4 * N_ + 4 * longest + 6) + 3 * N_ * P_ + 3 * lanes<T> * (P_ + N_)
           + 32 * 16;
  }

  Head(const Arguments<T>& a, const Row& row, Index b)
      : a(a), row(row), b(b), h(0), g(0), P(a.channels), N(a.states),
        P_(round_up(P, lanes<T>)), N_(round_up(N, lanes<T>)), space(sizes(P_, N_)) {
    X = space.take(longest * P_), Bs = space.take(longest * N_), BT = space.take(N_ * longest);
    Cs = space.take(longest * N_), G = space.take(longest * P_);
    M = space.take(longest * longest), S = space.take(longest * longest);
    E = space.take(longest * longest), scratch = space.take(longest * longest);
    step = space.take(longest), sum = space.take(longest), line = space.take(longest);
    grad_step = space.take(longest), grad_sum = space.take(longest);
    state = space.take((N_ + lanes<T>) * P_), other = space.take((N_ + lanes<T>) * P_);
    turned = space.take((P_ + lanes<T>) * N_);
    narrow = space.take(longest * P_), wide = space.take(longest * N_);
    XT = space.take(P_ * longest);
  }

  Index token(const Piece& piece, Index i) const { return row.tokens[piece.begin + i]; }

  void gather(T* out, Index width, Index whole, const T* from, Index stride, const Piece& piece) {
    for (Index i = 0; i < piece.size; ++i) {
      const T* source = from + token(piece, i) * stride;
      T* target = out + i * whole;
      std::memcpy(target, source, width * sizeof(T));
      for (Index c = width; c < whole; ++c) target[c] = 0;
    }
    const Index rest = round_up(piece.size, lanes<T>) - piece.size;
    std::memset(out + piece.size * whole, 0, rest * whole * sizeof(T));
  }

  // Load a state stored as P x N, or zeros.
  void fetch_state(T* out, const T* from) {
    std::memset(out, 0, N_ * P_ * sizeof(T));
    if (from) transpose(out, P_, from, N, P, N);
  }
  void keep_state(T* out, const T* from) const { transpose(out, N, from, P_, N, P); }

  // Load a piece: values, keys (also turned), queries, steps and the sums of dt A.
  void fetch(const Piece& piece, bool with_queries) {
    const Index L = piece.size, L_ = round_up(L, lanes<T>);
    gather(X, P, P_, a.x + b * a.x_row + h * P, a.x_token, piece);
    gather(Bs, N, N_, a.B + b * a.B_row + g * N, a.B_token, piece);
    if (with_queries) {
      gather(Cs, N, N_, a.C + b * a.C_row + g * N, a.C_token, piece);
      turn(BT, longest, Bs, N_, L, N);
    }
    T total = 0;
    for (Index i = 0; i < L; ++i) {
      step[i] = a.dt[(b * a.tokens + token(piece, i)) * a.heads + h];
      total += step[i] * a.A[h];
      sum[i] = total;
    }
    for (Index i = L; i < L_; ++i) step[i] = 0, sum[i] = total;
  }

  // E: what survives from a write at j to a read at i. S: keys against queries. M: S E dt.
  void compare(Index L) {
    multiply(S, longest, Cs, N_, Index(1), BT, longest, L, round_up(L, lanes<T>), N, false,
             Part::lower_out);
    for (Index i = 0; i < L; ++i) {
      const Index whole = round_up(L, lanes<T>);
      for (Index j = 0; j < whole; j += lanes<T>) {
        T* e = E + i * longest + j;
        if (j > i) {
          store(e, Vec<T>{}), store(M + i * longest + j, Vec<T>{});
          continue;
        }
        const Vec<T> left = keep_first<T>(exp<T>(sum[i] - load(sum + j)), i + 1 - j);
        store(e, left);
        store(M + i * longest + j, load(S + i * longest + j) * left * load(step + j));
      }
    }
  }

  // line: for each token, what survives of its write (times dt) at the end of the piece.
  T fade(Index L, bool with_step) {
    const T end = sum[L - 1];
    for (Index i = 0; i < L; i += lanes<T>) {
      const Vec<T> left = exp<T>(end - load(sum + i));
      store(line + i, with_step ? left * load(step + i) : left);
    }
    return exp<T>(spread(end))[0];
  }

  // h = exp(s_L) h + (B exp(s_L - s) dt)^T x.
  void advance(const Piece& piece) {
    const T kept = fade(piece.size, true);
    scale(state, piece.fresh ? T(0) : kept, N_ * P_);
    scale_rows(wide, Bs, line, piece.size, N_);
    multiply(state, P_, wide, Index(1), N_, X, P_, N, P_, piece.size, true);
  }

  void raise(Index L) {
    for (Index i = 0; i < L; i += lanes<T>) store(line + i, exp<T>(load(sum + i)));
  }

  void forward(const Piece& piece) {
    const Index L = piece.size;
    fetch(piece, true);
    compare(L);
    multiply(narrow, P_, M, longest, Index(1), X, P_, L, P_, L, false, Part::lower);
    if (!piece.fresh) {
      raise(L);
      scale_rows(wide, Cs, line, L, N_);
      multiply(narrow, P_, wide, N_, Index(1), state, P_, L, P_, N, true);
    }
    const T own = a.D ? a.D[h] : T(0);
    for (Index i = 0; i < L; ++i) {
      T* y = a.y + ((b * a.tokens + token(piece, i)) * a.heads + h) * P;
      for (Index p = 0; p < P; ++p) y[p] = narrow[i * P_ + p] + own * X[i * P_ + p];
    }
    advance(piece);
  }

  // Turn `other`, the gradient of the state after the piece, into that of the state before it, and
  // write the gradients of the piece's inputs; `state` is the state before it.
  void backward(const Piece& piece, bool first_head, T& grad_A, T& grad_D) {
    const Index L = piece.size, L_ = round_up(L, lanes<T>);
    fetch(piece, true);
    gather(G, P, P_, a.grad_y + (b * a.tokens * a.heads + h) * P, a.heads * P, piece);
    compare(L);
    turn(XT, longest, X, P_, L, P);
    for (Index i = 0; i < longest; ++i) grad_step[i] = grad_sum[i] = 0;

    // x: what was read later in the piece, what went into the state, and D.
    multiply(narrow, P_, M, Index(1), longest, G, P_, L, P_, L, false, Part::upper);
    const T kept = fade(L, true);
    scale_rows(wide, Bs, line, L, N_);
    multiply(narrow, P_, wide, N_, Index(1), other, P_, L, P_, N, true);
    const T own = a.D ? a.D[h] : T(0);
    for (Index i = 0; i < L; ++i) {
      T* grad = a.grad_x + ((b * a.tokens + token(piece, i)) * a.heads + h) * P;
      for (Index p = 0; p < P; ++p) grad[p] = narrow[i * P_ + p] + own * G[i * P_ + p];
      grad_D += dot(G + i * P_, X + i * P_, P_);
    }
    grad_sum[L - 1] += piece.fresh ? T(0) : kept * dot(other, state, N_ * P_);

    // The scores: their gradient reaches C, B, dt and the decays between tokens of the piece.
    multiply(scratch, longest, G, P_, Index(1), XT, longest, L, L_, P, false, Part::lower_out);
    differentiate_scores(L);
    multiply(wide, N_, scratch, longest, Index(1), Bs, N_, L, N_, L, false, Part::lower);
    if (!piece.fresh) {
      raise(L);
      scale_rows(narrow, G, line, L, P_);
      turn(turned, N_, state, P_, N, P);
      add_read(L);
    }
    deposit(a.grad_C, wide, piece, first_head);

    multiply(wide, N_, scratch, Index(1), longest, Cs, N_, L, N_, L, false, Part::upper);
    fade(L, false);
    turn(turned, N_, other, P_, N, P);
    add_written(L);
    deposit(a.grad_B, wide, piece, first_head);

    // The state before the piece: through what is kept of it, and through what is read of it.
    scale(other, piece.fresh ? T(0) : kept, N_ * P_);
    if (!piece.fresh) {
      raise(L);
      scale_rows(wide, Cs, line, L, N_);
      multiply(other, P_, wide, Index(1), N_, G, P_, N, P_, L, true);
    }
    T later = 0;
    for (Index i = L - 1; i >= 0; --i) {
      later += grad_sum[i];
      grad_A += later * step[i];
      a.grad_dt[(b * a.tokens + token(piece, i)) * a.heads + h] = grad_step[i] + later * a.A[h];
    }
  }

  // scratch holds the gradient of M; make it that of S, and add those of dt and of the sums s.
  void differentiate_scores(Index L) {
    const Index whole = round_up(L, lanes<T>);
    for (Index i = 0; i < L; ++i) {
      Vec<T> total = {};
      for (Index j = 0; j < whole; j += lanes<T>) {
        T* grad = scratch + i * longest + j;
        if (j > i) {
          store(grad, Vec<T>{});
          continue;
        }
        const Vec<T> faded = load(grad) * load(E + i * longest + j);
        const Vec<T> by_step = faded * load(S + i * longest + j);
        const Vec<T> by_sum = by_step * load(step + j);
        store(grad, faded * load(step + j));
        store(grad_step + j, load(grad_step + j) + by_step);
        store(grad_sum + j, load(grad_sum + j) - by_sum);
        total += by_sum;
      }
      grad_sum[i] += sum_lanes<T>(total);
    }
  }

  // wide += what C reads of the state; the same products are the gradient of exp(s_i).
  void add_read(Index L) {
    T* read = scratch_rows();
    multiply(read, N_, narrow, P_, Index(1), turned, N_, L, N_, P, false);
    for (Index i = 0; i < L; ++i) {
      grad_sum[i] += dot(read + i * N_, Cs + i * N_, N_);
      for (Index n = 0; n < N_; n += lanes<T>)
        store(wide + i * N_ + n, load(wide + i * N_ + n) + load(read + i * N_ + n));
    }
  }

  // wide += what B writes to the state; the same products are the gradients of dt and of decays.
  void add_written(Index L) {
    T* written = scratch_rows();
    multiply(written, N_, X, P_, Index(1), turned, N_, L, N_, P, false);
    T all = 0;
    for (Index i = 0; i < L; ++i) {
      const T by_step = line[i] * dot(written + i * N_, Bs + i * N_, N_);
      grad_step[i] += by_step;
      grad_sum[i] -= by_step * step[i];
      all += by_step * step[i];
      const T factor = line[i] * step[i];
      for (Index n = 0; n < N_; n += lanes<T>)
        store(wide + i * N_ + n,
              load(wide + i * N_ + n) + load(written + i * N_ + n) * factor);
    }
    grad_sum[L - 1] += all;
  }

  // The turned keys are not needed any more once the scores are compared.
  T* scratch_rows() { return BT; }

  void deposit(T* out, const T* from, const Piece& piece, bool first_head) {
    for (Index i = 0; i < piece.size; ++i) {
      T* to = out + ((b * a.tokens + token(piece, i)) * a.groups + g) * N;
      const T* row = from + i * N_;
      if (first_head) {
        std::memcpy(to, row, N * sizeof(T));
        continue;
      }
      for (Index n = 0; n < N; ++n) to[n] += row[n];
    }
  }
};

template <class T> void clear_padding(const Arguments<T>& a, T* out, Index b, Index offset,
                                      Index width, Index stride) {
  for (Index t = 0; a.segments && t < a.tokens; ++t)
    if (a.segments[b * a.tokens + t] == 0)
      std::memset(out + (b * a.tokens + t) * stride + offset, 0, width * sizeof(T));
}

template <class T> void run_forward(Head<T>& head, const std::vector<Piece>& pieces) {
  const Arguments<T>& a = head.a;
  const Index size = a.channels * a.states, at = (head.b * a.heads + head.h) * size;
  clear_padding(a, a.y, head.b, head.h * a.channels, a.channels, a.heads * a.channels);
  head.fetch_state(head.state, a.state ? a.state + at : nullptr);
  for (const Piece& piece : pieces) head.forward(piece);
  head.keep_state(a.last + at, head.state);
}

template <class T>
void run_backward(Head<T>& head, const std::vector<Piece>& pieces, T* before, bool first_head) {
  const Arguments<T>& a = head.a;
  const Index size = a.channels * a.states, at = (head.b * a.heads + head.h) * size;
  const Index whole = head.N_ * head.P_;
  clear_padding(a, a.grad_x, head.b, head.h * a.channels, a.channels, a.heads * a.channels);
  clear_padding(a, a.grad_dt, head.b, head.h, 1, a.heads);
  if (first_head)
    for (T* out : {a.grad_B, a.grad_C})
      clear_padding(a, out, head.b, head.g * a.states, a.states, a.groups * a.states);
  head.fetch_state(head.state, a.state ? a.state + at : nullptr);
  for (Index k = 0; k < Index(pieces.size()); ++k) {
    std::memcpy(before + k * whole, head.state, whole * sizeof(T));
    head.fetch(pieces[k], false);
    head.advance(pieces[k]);
  }
  head.fetch_state(head.other, a.grad_last + at);
  T grad_A = 0, grad_D = 0;
  for (Index k = Index(pieces.size()) - 1; k >= 0; --k) {
    std::memcpy(head.state, before + k * whole, whole * sizeof(T));
    head.backward(pieces[k], first_head, grad_A, grad_D);
  }
  head.keep_state(a.grad_state + at, head.other);
  a.grad_A[head.b * a.heads + head.h] = grad_A;
  a.grad_D[head.b * a.heads + head.h] = grad_D;
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
    Space<T> before(backward ? head.N_ * head.P_ * (Index(cuts[b].size()) + 1) : 1);
    T* states = before.take(1);
    for (Index i = 0; i < shared; ++i) {
      head.h = head.g * shared + i;
      if (backward)
        run_backward(head, cuts[b], states, i == 0);
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

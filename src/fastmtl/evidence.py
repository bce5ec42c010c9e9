"""The marginal likelihood of tasks' relations, given one family of vectors, and its gradient.

With ``w_t = L u_t``, ``u_t = Σ_r B[t, r] s_r + v_t`` everything couples through the few shared
``s_r``, so a value and its gradient cost T inverses of (d × d) and one of (R d × R d), never one of
(T d × T d). Where L stays what it is, an eigenbasis for each task serves all B, κ and noises, and a
value and its gradient are a few products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg


@dataclass
class Summary:
    """What the data say of one family of vectors: ½ Σ_t w_t·gram_t w_t - moment_t·w_t + square/2.

    `gram` (T, p, p) and `moment` (T, p) include the intercept last where `flat` says that a shared
    intercept without a prior stands beside the vectors; `count` is the number of labels.
    """

    gram: np.ndarray
    moment: np.ndarray
    square: float
    count: float
    spectrum: Spectrum | None = None  # for the L that `diagonalise` was last called with

    def diagonalise(self, root, flat):
        """Make `posterior` cheap for every B, κ and noise beside this L."""
        if self.spectrum is None or not np.array_equal(self.spectrum.root, root):
            self.spectrum = Spectrum(self, root, flat)

    def left(self, relations):
        """What the data of each task say of u_t, once v_t is integrated out: (T, q, q)."""
        L = relations.root
        if self.spectrum is not None and np.array_equal(self.spectrum.root, L):
            return self.spectrum.left(relations)
        own = L.T @ (self.gram / relations.noise) @ L
        P = np.linalg.inv(own + np.eye(L.shape[1]) / relations.kappa[:, None, None])
        return own - own @ P @ own


@dataclass
class Relations:
    """B (T, R), κ (T,), L (p, q) and the noise variance."""

    mixing: np.ndarray
    kappa: np.ndarray
    root: np.ndarray
    noise: float
    plain: bool = True  # the first column of B is b 1
    alike: np.ndarray | None = None  # what the last columns of B are a multiple of

    @property
    def n_free(self):
        """Columns of B before those that are a multiple of `alike`."""
        return self.mixing.shape[1] - (0 if self.alike is None else self.alike.shape[1])

    def covariance(self):
        return self.mixing @ self.mixing.T + np.diag(self.kappa)


@dataclass
class Posterior:
    """Of the whitened vectors, given the relations."""

    value: float  # negative log marginal likelihood, up to a constant
    shared: np.ndarray  # (R, q)
    specific: np.ndarray  # (T, q)
    offset: float
    vectors: np.ndarray  # (T, p), in the summary's coordinates, offset included
    gradient: tuple | None = None  # in B, log κ, L, log noise


def posterior(summary, relations, flat, *, gradient=False):
    """Mean and marginal likelihood of one family of vectors, and the latter's gradient."""
    spectrum = summary.spectrum
    if spectrum is not None and np.array_equal(spectrum.root, relations.root):
        return spectrum.posterior(relations, gradient)
    B, kappa, L, noise = relations.mixing, relations.kappa, relations.root, relations.noise
    n_tasks, n_shared = B.shape
    p, q = L.shape
    wide = np.column_stack([L, np.eye(p)[:, -1:]]) if flat else L
    width = wide.shape[1]
    half = (summary.gram / noise) @ wide  # (T, p, width)
    info = wide.T @ half  # (T, width, width)
    moment = summary.moment @ wide / noise
    across, own = info[:, :q], info[:, :q, :q]

    # v_t given the shared part: P_t = (own + 1/κ_t)⁻¹, by a Cholesky factor of 1 + κ_t own.
    scaled = kappa[:, None, None] * own + np.eye(q)
    factor = np.linalg.cholesky(scaled)
    P = kappa[:, None, None] * np.linalg.inv(scaled)
    P = (P + P.transpose(0, 2, 1)) / 2
    P_across = P @ across  # (T, q, width)
    P_moment = np.einsum("tij,tj->ti", P, moment[:, :q])
    left = info - across.transpose(0, 2, 1) @ P_across
    right = moment - np.einsum("tij,ti->tj", across, P_moment)

    edge = (left[:, :q, -1], left[:, -1, -1].sum(), right[:, -1].sum()) if flat else None
    b, cho, theta, log_det = _of_shared(B, left[:, :q, :q], right[:, :q], edge)
    shared = theta[: n_shared * q].reshape(n_shared, q)
    offset = float(theta[-1]) if flat else 0.0

    u = B @ shared
    if flat:
        u = np.column_stack([u, np.full(n_tasks, offset)])
    specific = P_moment - np.einsum("tij,tj->ti", P_across, u)
    whole = u.copy()
    whole[:, :q] += specific
    value = 0.5 * (
        summary.count * np.log(noise)
        + summary.square / noise
        + 2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum()
        - np.sum(moment[:, :q] * P_moment)
        + log_det
        - b @ theta
    )
    found = Posterior(value, shared, specific, offset, whole @ wide.T)
    if not gradient:
        return found

    # u_t has covariance U_t, and the whitened vector is P_t m_t + keep_t u_t plus noise of P_t.
    cov = _inverse(cho)
    U = np.zeros((n_tasks, width, width))
    cov_us = np.zeros((n_tasks, n_shared, width, q))  # Cov(u_t, s_r)
    if n_shared:
        C4 = cov[: n_shared * q, : n_shared * q].reshape(n_shared, q, n_shared, q)
        by_row = C4.transpose(0, 2, 1, 3).reshape(n_shared, -1)
        cov_us[:, :, :q] = (B @ by_row).reshape(n_tasks, n_shared, q, q)
        if flat:
            cov_us[:, :, -1] = cov[-1, :-1].reshape(n_shared, q)
        U[:, :, :q] = np.einsum("tr,trij->tij", B, cov_us)
    if flat:
        U[:, :q, -1] = U[:, -1, :q]
        U[:, -1, -1] = cov[-1, -1]
    keep = -P_across
    keep[:, np.arange(q), np.arange(q)] += 1.0
    pull = P_across @ U  # (T, q, width)
    spread = np.einsum("tij,tij->t", pull, P_across) + np.trace(P, axis1=1, axis2=2)
    grad_kappa = 0.5 * (q - (np.sum(specific**2, axis=1) + spread) / kappa)

    all_cov = np.zeros((n_tasks, width, q))  # Cov([whitened vector; offset], whitened vector)
    all_cov[:, :q] = P + keep @ U @ keep.transpose(0, 2, 1)
    if flat:
        all_cov[:, -1] = np.einsum("tj,tij->ti", U[:, -1], keep)
    slope = np.einsum("tij,tj->ti", across, whole) - moment[:, :q]
    grad_B = slope @ shared.T
    if n_shared:
        # across_t · Cov([whole], s_r) with Cov(v-part) = keep_t Cov(u_t, s_r)
        lever = own @ keep
        if flat:
            lever[:, :, -1] += across[:, :, -1]
        grad_B += np.einsum("tij,trji->tr", lever, cov_us)
    second = all_cov + whole[:, :, None] * whole[:, None, :q]
    grad_L = np.tensordot(half, second, axes=([0, 2], [0, 1])) - (
        summary.moment.T @ whole[:, :q] / noise
    )
    used = np.einsum("tij,tij->", info[:, :, :q], second)
    if flat:
        last = np.concatenate([all_cov[:, -1], np.full((n_tasks, 1), cov[-1, -1])], axis=1)
        last += whole[:, -1:] * whole
        used += np.einsum("ti,ti->", info[:, :, -1], last)
    grad_noise = 0.5 * (
        summary.count - (summary.square / noise + used - 2 * np.sum(moment * whole))
    )
    found.gradient = grad_B, grad_kappa, grad_L, grad_noise
    return found


def padded(d):
    """Rows and columns of the Gram matrix of (x, 1, y): whole registers."""
    return (d + 2 + 7) // 8 * 8


def shared_part(blocks, right, edge, strength=1.0):
    """The shared part, (s_1 … s_R, offset), once all v_t are integrated out.

    `blocks` (R, R, q, q) and `right` (R, q) are what the data say of the s_r; `edge` is None, or
    what they say of these with the offset (R, q), of the offset, and its moment. Returns (b, factor
    of A, A⁻¹ b, log det A), where A has `strength` added for the prior of the s_r.
    """
    n_shared, q = right.shape
    size = n_shared * q
    n = size + (edge is not None)
    A, b = np.zeros((n, n)), np.zeros(n)
    if n_shared:
        A[:size, :size] = blocks.transpose(0, 2, 1, 3).reshape(size, size)
        A[np.arange(size), np.arange(size)] += strength
        b[:size] = right.ravel()
    if edge is not None:
        A[:-1, -1] = A[-1, :-1] = edge[0].ravel()
        A[-1, -1], b[-1] = edge[1:]
    if not n:
        return b, None, b, 0.0
    cho = scipy.linalg.cho_factor(A, lower=True)
    theta = scipy.linalg.cho_solve(cho, b)
    return b, cho, theta, 2 * np.log(np.diag(cho[0])).sum()


def _inverse(cho):
    """A⁻¹ of what `shared_part` gives of A."""
    if cho is None:
        return np.zeros((0, 0))
    lower = np.tril(scipy.linalg.lapack.dpotri(cho[0], lower=1)[0])
    return lower + np.tril(lower, -1).T


def _of_shared(B, left, right, edge):
    """`shared_part` from what the data say of each u_t."""
    n_shared = B.shape[1]
    blocks = _pairs(B).T @ left.reshape(len(B), -1)
    if edge is not None:
        edge = B.T @ edge[0], *edge[1:]
    return shared_part(blocks.reshape(n_shared, n_shared, *left.shape[1:]), B.T @ right, edge)


def _pairs(B):
    """B[t, r] B[t, s]: (T, R²)."""
    return (B[:, :, None] * B[:, None, :]).reshape(len(B), -1)


class Spectrum:
    """The likelihood for a fixed L, in bases of each task in which its Gram matrix is diagonal."""

    def __init__(self, summary, root, flat):
        self.root, self.flat = root, flat
        self.square, self.count = summary.square, summary.count
        self.last_left = None, None
        plain = root.shape == summary.gram.shape[1:] and np.array_equal(root, np.eye(len(root)))
        own = summary.gram if plain else root.T @ summary.gram @ root
        size, basis = np.linalg.eigh(own)
        self.size = np.maximum(size, 0.0)  # (T, q)
        self.basis = np.ascontiguousarray(basis.transpose(0, 2, 1))  # rows are eigenvectors
        self.moment = self._turned(summary.moment @ root)
        self.edge = np.zeros_like(self.size)
        self.last = self.last_moment = 0.0
        if flat:
            self.edge = self._turned(summary.gram[:, -1] @ root)
            self.last, self.last_moment = summary.gram[:, -1, -1], summary.moment[:, -1]

    def _turned(self, vectors):
        return (self.basis @ vectors[:, :, None])[:, :, 0]

    def _back(self, vectors):
        return (vectors[:, None] @ self.basis)[:, 0]

    def _squares(self, weight):
        """Q_t diag(weight_t) Q_tᵀ."""
        return self.basis.transpose(0, 2, 1) @ (weight[:, :, None] * self.basis)

    def left(self, relations):
        """See `Summary.left`; the last is kept, for several ask about the same relations."""
        now = relations.noise, relations.kappa.tobytes()
        if now != self.last_left[0]:
            size = self.size / relations.noise
            left = self._squares(size / (1 + relations.kappa[:, None] * size))
            self.last_left = now, left
        return self.last_left[1]

    def posterior(self, relations, gradient):
        """As `posterior`; the gradient has no part in L."""
        B, noise, flat = relations.mixing, relations.noise, self.flat
        kappa = relations.kappa[:, None]
        n_tasks, n_shared = B.shape
        q = self.size.shape[1]
        size, moment, edge = self.size / noise, self.moment / noise, self.edge / noise
        last, last_moment = self.last / noise, self.last_moment / noise
        kept = 1 / (1 + kappa * size)
        info = size * kept
        left = self.left(relations)
        flank = kept * edge

        n_rows = n_shared * q
        edges = None
        if flat:
            corner = last.sum() - np.sum(kappa * flank * edge)
            at_corner = last_moment.sum() - np.sum(kappa * flank * moment)
            edges = self._back(flank), corner, at_corner
        b, cho, theta, log_det = _of_shared(B, left, self._back(kept * moment), edges)
        shared = theta[:n_rows].reshape(n_shared, q)
        offset = float(theta[-1]) if flat else 0.0

        u = B @ shared
        turned = self._turned(u)
        pull = kept * (moment - size * turned - edge * offset)  # v_t / κ_t, in the task's basis
        own = self._back(pull)
        specific = relations.kappa[:, None] * own
        vectors = (u + specific) @ self.root.T
        if flat:
            vectors[:, -1] += offset
        value = 0.5 * (
            self.count * np.log(noise)
            + self.square / noise
            - np.log(kept).sum()
            - np.sum(kappa * kept * moment**2)
            + log_det
            - b @ theta
        )
        found = Posterior(value, shared, specific, offset, vectors)
        if not gradient:
            return found

        # With the means at their best only what depends on B, κ and the noise directly is left.
        cov = _inverse(cho)
        pairs = cov[:n_rows, :n_rows].reshape(n_shared, q, n_shared, q).transpose(1, 3, 0, 2)
        pairs = np.ascontiguousarray(pairs).reshape(q * q, -1)
        by_pair = left.reshape(n_tasks, -1) @ pairs  # ⟨left_t, Cov(s_r, s_s)⟩
        squared = (left @ left).reshape(n_tasks, -1) @ pairs
        outer = _pairs(B)
        spread, squared = np.sum(outer * by_pair, axis=1), np.sum(outer * squared, axis=1)
        by_mixing = np.sum(by_pair.reshape(n_tasks, n_shared, n_shared) * B[:, None, :], axis=2)
        by_mixing -= own @ shared.T
        kappa = relations.kappa
        seen = kappa * info.sum(axis=1)
        by_kappa = seen - kappa * (np.sum(own**2, axis=1) + squared)
        by_scale = seen + spread - kappa * squared
        if flat:
            aside = cov[-1, :-1].reshape(n_shared, q)  # Cov(s_r, offset)
            by_mixing += self._back(flank) @ aside.T
            crossed = self._turned(B @ aside)
            by_kappa -= 2 * kappa * np.sum(info * flank * crossed, axis=1)
            by_kappa -= kappa * np.sum(flank**2, axis=1) * cov[-1, -1]
            by_scale += 2 * np.sum(kept * flank * crossed, axis=1)
            twice = np.sum(flank**2 * (2 + kappa[:, None] * size), axis=1)
            by_scale += (last - kappa * twice) * cov[-1, -1]
        whole = turned + kappa[:, None] * pull
        fitted = np.sum(size * whole**2 + 2 * (offset * edge - moment) * whole)
        fitted += np.sum(last * offset**2 - 2 * last_moment * offset)
        by_noise = self.count - self.square / noise - fitted - by_scale.sum()
        found.gradient = by_mixing, 0.5 * by_kappa, None, 0.5 * by_noise
        return found

"""Networks in NumPy: the layers one after the other, then the coupled heads.

``layers`` is an int64 table, one row a layer, in an order in which every layer comes after those it
reads. Columns: kind, activation, input layer (-1: none), second input (`Concat`; -1: none), n_in,
n_out, offset of its parameters, number of weights, number of biases, and seven sizes:

=========  ============  ===========================================  =====================
kind       number        sizes                                        weights; biases
=========  ============  ===========================================  =====================
input      0             first column of X
dense      1                                                          (n_in, n_out); n_out
conv2d     2             height, width, channels, kernel, filters,    (k, k, c, f); f
                         stride, "same" padding?
maxpool2d  3             height, width, channels, pool
concat     4
rnn        5             steps, features, units, whole sequences?     (d, u), (u, u); u
lstm       6             the same; gates i, f, g, o                   (d, 4u), (u, 4u); 4u
gru        7             the same; gates r, z, n                      (d, 3u), (u, 3u); 4u
dropout    8             rate in units of 2⁻³²
layernorm  9                                                          n; n
=========  ============  ===========================================  =====================

Activations: identity 0, relu 1, leaky relu 2, tanh 3, logistic 4, gelu 5. Outputs of task t are
``head_start[t]:head_start[t + 1]``; output o is ``Σ_e mix[o, e] (H[row[o, e]]·f + c[row[o, e]])``
with H (n_head_rows, n_features) and c (n_head_rows,) at ``head_offset``. Loss 100 is softmax with
log loss, others are those of one point. Sample i is row ``sample_row[i]`` with the observations
``sample_start[i]:sample_start[i + 1]``; a batch's loss is the sum over its observations divided by
its number of samples. ``settings``: optimiser (SGD, momentum, Nesterov, Adam), batch size, learning
rate (0: gradients only, negative: losses only), L2 on the heads, L2 on the trunk's weights,
momentum or beta_1, beta_2, epsilon, norm at which gradients are clipped (0: never), steps done,
seed, decoupled decay, and whether the trunk's gradient is that of PCGrad (Yu et al., 2020) over the
tasks of the batch.
"""

import numpy as np
from scipy import special

MASK = (1 << 64) - 1


def _hash(z):
    z = z.astype(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _activate(kind, z):
    if kind == 1:
        return np.maximum(z, 0)
    if kind == 2:
        return np.where(z < 0, z.dtype.type(0.01) * z, z)
    if kind == 3:
        return np.tanh(z)
    if kind == 4:
        return special.expit(z)
    if kind == 5:
        return (0.5 * z * (1 + special.erf(z / np.sqrt(2)))).astype(z.dtype)
    return z


def _activation_slope(kind, z, y):
    if kind == 1:
        return (y > 0).astype(y.dtype)
    if kind == 2:
        return np.where(y > 0, 1, 0.01).astype(y.dtype)
    if kind == 3:
        return 1 - y * y
    if kind == 4:
        return y * (1 - y)
    if kind == 5:
        slope = 0.5 * (1 + special.erf(z / np.sqrt(2))) + z * np.exp(-z * z / 2) / np.sqrt(
            2 * np.pi
        )
        return slope.astype(y.dtype)
    return np.ones_like(y)


def _blocks(row, parameters):
    at, n_weights, n_bias = row[6], row[7], row[8]
    return parameters[at : at + n_weights], parameters[at + n_weights : at + n_weights + n_bias]


def _recurrent_weights(row, parameters):
    weights, bias = _blocks(row, parameters)
    d, u = row[10], row[11]
    gates = {5: 1, 6: 4, 7: 3}[row[0]] * u
    return weights[: d * gates].reshape(d, gates), weights[d * gates :].reshape(u, gates), bias


def _recurrent_forward(row, parameters, x, lengths):
    Wx, Wh, bias = _recurrent_weights(row, parameters)
    steps, u, sequences = row[9], row[11], row[12]
    x = x.reshape(len(x), steps, row[10])
    h = np.zeros((len(x), u), x.dtype)
    c = np.zeros_like(h)
    outputs, trace = np.zeros((len(x), steps, u), x.dtype), []
    for t in range(int(lengths.max())):
        alive = (t < lengths)[:, None]
        z, a = x[:, t] @ Wx + bias[: Wx.shape[1]], h @ Wh
        if row[0] == 5:
            new, new_c, kept = np.tanh(z + a), c, ()
            kept = (new,)
        elif row[0] == 6:
            i, f, o = (special.expit((z + a)[:, k * u : (k + 1) * u]) for k in (0, 1, 3))
            g = np.tanh((z + a)[:, 2 * u : 3 * u])
            new_c = f * c + i * g
            new, kept = o * np.tanh(new_c), (i, f, g, o, np.tanh(new_c))
        else:
            r, zz = (
                special.expit(z[:, :u] + a[:, :u]),
                special.expit(z[:, u : 2 * u] + a[:, u : 2 * u]),
            )
            an = a[:, 2 * u :] + bias[3 * u :]
            n = np.tanh(z[:, 2 * u :] + r * an)
            new, new_c, kept = n + zz * (h - n), c, (r, zz, n, an)
        trace.append((alive, h, c, kept))
        h, c = np.where(alive, new, h), np.where(alive, new_c, c)
        outputs[:, t] = np.where(alive, h, 0)
    return (outputs.reshape(len(x), -1) if sequences else h), trace


def _recurrent_backward(row, parameters, x, trace, grad, gradient):
    Wx, Wh, _ = _recurrent_weights(row, parameters)
    Gx, Gh, Gb = _recurrent_weights(row, gradient)
    steps, u, sequences = row[9], row[11], row[12]
    x = x.reshape(len(x), steps, row[10])
    dx = np.zeros_like(x)
    dh = np.zeros((len(x), u), x.dtype) if sequences else grad.copy()
    dc = np.zeros_like(dh)
    for t in reversed(range(len(trace))):
        alive, h, c, kept = trace[t]
        d = dh + grad.reshape(len(x), steps, u)[:, t] if sequences else dh
        if row[0] == 5:
            dz = da = d * (1 - kept[0] ** 2)
            direct = 0
        elif row[0] == 6:
            i, f, g, o, tc = kept
            s = dc + d * o * (1 - tc * tc)
            parts = [s * g * i * (1 - i), s * c * f * (1 - f), s * i * (1 - g * g)]
            dz = da = np.hstack(parts + [d * tc * o * (1 - o)])
            direct = 0
            dc = np.where(alive, s * f, dc)
        else:
            r, zz, n, an = kept
            dn = d * (1 - zz) * (1 - n * n)
            dr, dzz = dn * an * r * (1 - r), d * (h - n) * zz * (1 - zz)
            dz, da = np.hstack([dr, dzz, dn]), np.hstack([dr, dzz, dn * r])
            direct = d * zz
        dz, da = np.where(alive, dz, 0), np.where(alive, da, 0)
        dh = np.where(alive, direct + da @ Wh.T, dh)
        dx[:, t] = dz @ Wx.T
        Gx += x[:, t].T @ dz
        Gh += h.T @ da
        Gb[: dz.shape[1]] += dz.sum(0)
        if row[0] == 7:
            Gb[3 * u :] += da[:, 2 * u :].sum(0)
    return dx.reshape(len(x), -1)


def _windows(x, k, stride):
    """(n, height, width, c) -> (n, ho, wo, k, k, c), a view."""
    view = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return np.moveaxis(view, 3, -1)[:, ::stride, ::stride]


def _padding(row):
    """Rows and columns of zeros around an image: ((top, bottom), (left, right))."""
    k, stride, same = row[12], row[14], row[15]
    missing = [max(0, (-(-size // stride) - 1) * stride + k - size) for size in row[9:11]]
    return [(m // 2, m - m // 2) if same else (0, 0) for m in missing]


def _forward(layers, X, lengths, parameters, settings=None, step=0, only=-1):
    values, pres, caches = [], [], []
    for position, row in enumerate(layers):
        kind, activation = row[0], row[1]
        x = values[row[2]] if row[2] >= 0 else None
        n, cache = len(X), None
        if kind == 0:
            z = X[:, row[9] : row[9] + row[5]]
        elif kind == 1:
            W, b = _blocks(row, parameters)
            z = x @ W.reshape(row[4], row[5]) + b
        elif kind == 2:
            W, b = _blocks(row, parameters)
            h, w, c, k, f = row[9:14]
            padded = np.pad(x.reshape(n, h, w, c), [(0, 0), *_padding(row), (0, 0)])
            cache = _windows(padded, k, row[14])
            z = (np.tensordot(cache, W.reshape(k, k, c, f), 3) + b).reshape(n, -1)
        elif kind == 3:
            h, w, c, k = row[9:13]
            blocks = x.reshape(n, h, w, c)[:, : h // k * k, : w // k * k]
            blocks = blocks.reshape(n, h // k, k, w // k, k, c).transpose(0, 1, 3, 5, 2, 4)
            blocks = blocks.reshape(n, -1, k * k)
            cache = blocks.argmax(-1)
            z = blocks.max(-1)
        elif kind == 4:
            z = np.hstack([x, values[row[3]]])
        elif kind == 8:
            cache = np.ones_like(x)
            if settings is not None:
                key = int(settings[10]) * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + position
                key += (only + 1) << 32
                key = _hash(np.array([key & MASK], np.uint64))
                draw = np.arange(x.size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
                draw = (_hash(draw + key) >> np.uint64(32)).reshape(x.shape)
                scale = x.dtype.type(1 / (1 - row[9] / 2**32))
                cache = np.where(draw < np.uint64(row[9]), 0, scale).astype(x.dtype)
            z = cache * x
        elif kind == 9:
            gain, b = _blocks(row, parameters)
            inverse = 1 / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            normal = ((x - x.mean(1, keepdims=True)) * inverse).astype(x.dtype)
            cache = (normal, inverse.astype(x.dtype))
            z = normal * gain + b
        else:
            z, cache = _recurrent_forward(row, parameters, x, lengths)
        pres.append(z)
        caches.append(cache)
        values.append(_activate(activation, z))
    return values, pres, caches


def _backward(layers, parameters, values, pres, caches, grad, gradient):
    grads = {len(layers) - 1: grad}
    for position in reversed(range(len(layers))):
        row, g = layers[position], grads.pop(position)
        kind, n = row[0], len(g)
        if kind == 0:
            continue
        g = g * _activation_slope(row[1], pres[position], values[position])
        x, cache = values[row[2]], caches[position]
        W, _ = _blocks(row, parameters)
        GW, Gb = _blocks(row, gradient)
        if kind == 1:
            GW += (x.T @ g).ravel()
            Gb += g.sum(0)
            below = g @ W.reshape(row[4], row[5]).T
        elif kind == 2:
            h, w, c, k, f = row[9:14]
            g = g.reshape(*cache.shape[:3], f)
            GW += np.tensordot(cache, g, [[0, 1, 2]] * 2).ravel()
            Gb += g.sum((0, 1, 2))
            (top, bottom), (left, right) = _padding(row)
            padded = np.zeros((n, top + h + bottom, left + w + right, c), x.dtype)
            stride = row[14]
            for i in range(k):
                for j in range(k):
                    window = padded[:, i::stride, j::stride][:, : g.shape[1], : g.shape[2]]
                    window += g @ W.reshape(k, k, c, f)[i, j].T
            below = padded[:, top : top + h, left : left + w].reshape(n, -1)
        elif kind == 3:
            h, w, c, k = row[9:13]
            blocks = np.zeros((n, g.shape[1], k * k), g.dtype)
            np.put_along_axis(blocks, cache[..., None], g[..., None], -1)
            blocks = blocks.reshape(n, h // k, w // k, c, k, k).transpose(0, 1, 4, 2, 5, 3)
            below = np.zeros((n, h, w, c), g.dtype)
            below[:, : h // k * k, : w // k * k] = blocks.reshape(n, h // k * k, w // k * k, c)
            below = below.reshape(n, -1)
        elif kind == 4:
            below, grads[row[3]] = g[:, : x.shape[1]], g[:, x.shape[1] :]
        elif kind == 8:
            below = g * cache
        elif kind == 9:
            normal, inverse = cache
            GW += (g * normal).sum(0)
            Gb += g.sum(0)
            s = g * W
            along = (s * normal).mean(1, keepdims=True)
            below = inverse * (s - s.mean(1, keepdims=True) - normal * along)
        else:
            below = _recurrent_backward(row, parameters, x, cache, g, gradient)
        grads[row[2]] = below


def _project(gradients, key):
    """The sum of the gradients, each less its parts that oppose another's, in a random order."""
    m, total = len(gradients), np.zeros_like(gradients[0])
    for i, gradient in enumerate(gradients):
        draws = np.arange(i * m, (i + 1) * m, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        own = gradient.copy()
        for j in np.argsort(_hash(draws + key), kind="stable"):
            length = gradients[j] @ gradients[j]
            if j != i and length > 0 and own @ gradients[j] < 0:
                own -= own @ gradients[j] / length * gradients[j]
        total += own
    return total


def _point_loss(code, y, p, parameter):
    """Value and derivative in p of the losses of one point that networks offer."""
    r, margin = p - y, y * p
    if code == 0:
        return r * r / 2, r
    if code == 1:
        small = abs(r) <= parameter
        g = r if small else np.sign(r) * parameter
        return (r * r / 2 if small else parameter * (abs(r) - parameter / 2)), g
    if code == 4:
        return max(-parameter * r, (1 - parameter) * r), (
            -parameter if r < 0 else 1 - parameter if r > 0 else 0.0
        )
    if code == 5:
        return np.exp(p) - y * p, np.exp(p) - y
    if code == 9:
        return np.logaddexp(0, -margin), -y * special.expit(-margin)
    raise ValueError(f"loss {code} is not one of a network's")


def network_forward(layers, X, lengths, parameters, batch):
    lengths = lengths if len(lengths) else _full_lengths(layers, len(X))
    parts = [
        _forward(layers, X[i : i + batch], lengths[i : i + batch], parameters)[0][-1]
        for i in range(0, len(X), batch)
    ]
    return np.concatenate(parts) if parts else np.empty((0, layers[-1, 5]), X.dtype)


def _full_lengths(layers, n):
    steps = [row[9] for row in layers if 5 <= row[0] <= 7]
    return np.full(n, min(steps, default=0), np.int32)


def network_train(
    layers,
    X,
    lengths,
    sample_row,
    sample_start,
    task,
    target,
    weight,
    order,
    head_start,
    head_row,
    head_mix,
    loss,
    loss_parameter,
    head_offset,
    n_head_rows,
    max_outputs,
    parameters,
    state,
    gradient,
    settings,
    layer_norms,
    task_loss,
    n_threads,
):
    optimiser, batch, rate, alpha, decay, mu, beta_2, epsilon, clip, step = settings[:10]
    optimiser, batch, step, decoupled = int(optimiser), int(batch), int(step), bool(settings[11])
    surgery = bool(settings[12])
    lengths = lengths if len(lengths) else _full_lengths(layers, len(X))
    n_features = layers[-1, 5]
    cut = head_offset + n_head_rows * n_features
    H = parameters[head_offset:cut].reshape(n_head_rows, n_features)
    c = parameters[cut : cut + n_head_rows]
    decays = np.zeros_like(parameters)
    decays[head_offset : cut + n_head_rows] = alpha
    for row in layers[layers[:, 0] != 9]:
        _blocks(row, decays)[0][:] = decay

    def task_gradient(samples, total, only):
        """Gradient of the losses of these samples' labels, of one task or (only -1) of all."""
        rows = sample_row[samples]
        draws = settings if rate > 0 else None
        forward = _forward(layers, X[rows], lengths[rows], parameters, draws, step, only)
        features = forward[0][-1]
        grad = np.zeros_like(features)
        g_all = np.zeros_like(parameters)
        G, Gc = g_all[head_offset:cut].reshape(H.shape), g_all[cut : cut + n_head_rows]
        for i, sample in enumerate(samples):
            for ob in range(sample_start[sample], sample_start[sample + 1]):
                t = task[ob]
                if only not in (-1, t):
                    continue
                outputs = np.arange(head_start[t], head_start[t + 1])
                mix, at = head_mix[outputs], head_row[outputs]
                scores = (mix * (H[at] @ features[i] + c[at])).sum(1)
                if loss[t] == 100:
                    shifted = scores.astype(np.float64) - scores.max()
                    log_norm = np.log(np.exp(shifted).sum())
                    value = log_norm - shifted[int(target[ob])]
                    slope = np.exp(shifted - log_norm)
                    slope[int(target[ob])] -= 1
                else:
                    point = _point_loss(loss[t], target[ob], float(scores[0]), loss_parameter[t])
                    value, slope = point[0], np.array([point[1]])
                if not np.isfinite(value):
                    return None
                task_loss[t] += weight[ob] * value
                slope = (slope * weight[ob] / total).astype(X.dtype)
                pull = mix * slope[:, None]
                grad[i] += np.tensordot(pull, H[at], 2)
                np.add.at(G, at, pull[..., None] * features[i])
                np.add.at(Gc, at, pull)
        if rate >= 0:
            _backward(layers, parameters, *forward, grad, g_all)
        return g_all

    for first in range(0, len(order), batch):
        samples = order[first : first + batch]
        groups = {-1: samples}
        if surgery:
            own = [set(task[sample_start[s] : sample_start[s + 1]].tolist()) for s in samples]
            present = sorted(set().union(*own))
            groups = {t: samples[[t in tasks for tasks in own]] for t in present}
        gradients = [task_gradient(part, len(samples), t) for t, part in groups.items()]
        if any(g is None for g in gradients):
            return 1
        if rate < 0:
            continue
        g_all = np.sum(gradients, axis=0)
        if surgery:
            key = (int(settings[10]) + step * 0xD1B54A32D192ED03) & MASK
            trunks = [g[:head_offset] for g in gradients]
            g_all[:head_offset] = _project(trunks, _hash(np.array([key], np.uint64)))
        for position, row in enumerate(layers):
            layer_norms[position] = sum(
                float((b.astype(float) ** 2).sum()) for b in _blocks(row, g_all)
            )
        layer_norms[len(layers)] = float(
            (g_all[head_offset : cut + n_head_rows].astype(float) ** 2).sum()
        )
        norm = np.sqrt(layer_norms.sum())
        gradient[:] = g_all
        step += 1
        if rate == 0:
            continue
        scale = clip / norm if clip and norm > clip else 1.0
        g = (scale * g_all).astype(X.dtype)
        if decoupled:
            parameters *= (1 - rate * decays).astype(X.dtype)
        else:
            g = g + decays * parameters
        m, v = state
        if optimiser == 0:
            parameters -= (rate * g).astype(X.dtype)
        elif optimiser in (1, 2):
            m[:] = mu * m + g
            parameters -= (rate * (m if optimiser == 1 else g + mu * m)).astype(X.dtype)
        else:
            m[:] = mu * m + (1 - mu) * g
            v[:] = beta_2 * v + (1 - beta_2) * g * g
            spread = np.sqrt(v / (1 - beta_2**step)) + epsilon
            parameters -= (rate / (1 - mu**step) * m / spread).astype(X.dtype)
    return 0

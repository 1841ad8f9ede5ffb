"Every loss against a slow, independent implementation: plain Python loops over images, pixels, patches and classes"
import math
import pytest, torch
from dalnet.gia import gia_loss, local_loss
from dalnet.lattice import PermutohedralLattice
from dalnet.lea import lea_loss
from dalnet.refine import PAR, ptc_loss
from dalnet.segment import DenseEnergyLoss, collision_loss, seg_loss


def cos(a, b):
    "Cosine of two lists of numbers, 0 where one of them is zero"
    lengths = math.sqrt(sum(x*x for x in a))*math.sqrt(sum(y*y for y in b))
    return sum(x*y for x, y in zip(a, b))/lengths if lengths else 0.


def clip(x, low, high): return min(max(x, low), high)


def positive(cosine, similarity):
    "The number in (0,1) that a cosine is turned into"
    if similarity == 'map': return clip((1 + cosine)/2, 1e-6, 1 - 1e-6)
    return clip(cosine, 1e-4, 1 - 1e-4)


def slow_gia(cls, text_fg, text_bg, tags, cross, similarity, negatives='background'):
    "Eq. 3, and with class negatives the mean over the classes that are not tagged"
    total = 0.
    for v, y in zip(cls, tags):
        for c in range(len(y)):
            if y[c]: total -= math.log(positive(cos(v, text_fg[c]), similarity))
        if cross: total -= math.log(1 - positive(cos(v, text_bg[0]), similarity))
        absent = [math.log(1 - positive(cos(v, text_fg[c]), similarity)) for c in range(len(y)) if not y[c]]
        if cross and negatives == 'classes': total -= sum(absent)/max(1, len(absent))
    return total/len(cls)


def slow_contrast(plus, minus, tau):
    "One term of Eq. 6, with any number of negatives"
    return -math.log(math.exp(plus/tau)/(math.exp(plus/tau) + sum(math.exp(each/tau) for each in minus)))


def slow_lea(fg, bg, text_fg, text_bg, tags, lam, tau, cross, tag_reduce, similarity, negatives='background'):
    "Eq. 4-6"
    total, n = 0., len(fg)*len(fg[0])
    for patches_fg, patches_bg, y in zip(fg, bg, tags):
        tagged = [c for c in range(len(y)) if y[c]]
        share = 1/max(1, len(tagged)) if tag_reduce == 'mean' else 1.
        for f, b in zip(patches_fg, patches_bg):
            if not cross:
                logs = [math.log(positive(cos(f, text_fg[c]), similarity)) for c in tagged]
                total -= sum(logs)/max(1, len(tagged))
                continue
            plus, minus = share*sum(cos(f, text_fg[c]) for c in tagged), cos(f, text_bg[0])
            absent = [c for c in range(len(y)) if not y[c]] if negatives == 'classes' else []
            total += slow_contrast(plus, [minus, *(cos(f, text_fg[c]) for c in absent)], tau)
            plus, minus = cos(b, text_bg[0]), share*sum(cos(b, text_fg[c]) for c in tagged)
            total += lam*slow_contrast(plus, [minus, *(cos(b, text_fg[c]) for c in absent)], tau)
    return total/n


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('cross', [True, False])
@pytest.mark.parametrize('similarity', ['map', 'clamp'])
@pytest.mark.parametrize('negatives', ['background', 'classes'])
def test_gia(seed, cross, similarity, negatives):
    g = torch.Generator().manual_seed(seed)
    cls, fg, bg = (torch.randn(n, 7, generator=g) for n in (5, 4, 1))
    tags = (torch.rand(5, 4, generator=g) > .5).float()
    slow = slow_gia(*(tensor.tolist() for tensor in (cls, fg, bg, tags)), cross, similarity, negatives)
    assert abs(gia_loss(cls, fg, bg, tags, cross, similarity, negatives).item() - slow) < 1e-5


def slow_local(cls, inside, text_fg, text_bg, tags, cross, similarity, outside):
    "Eq. 3 for local views, turned round or left out for those outside the mask"
    total, n = 0., 0
    for views, shares, y in zip(cls, inside, tags):
        for v, share in zip(views, shares):
            n += 1
            ground = positive(cos(v, text_bg[0]), similarity)
            tagged = [positive(cos(v, text_fg[c]), similarity) for c in range(len(y)) if y[c]]
            if share >= .5:
                total -= sum(math.log(p) for p in tagged) + (math.log(1 - ground) if cross else 0)
            elif outside == 'background':
                total -= math.log(ground) + (sum(math.log(1 - p) for p in tagged) if cross else 0)
    return total/n


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('cross', [True, False])
@pytest.mark.parametrize('similarity', ['map', 'clamp'])
@pytest.mark.parametrize('outside', ['ignore', 'background'])
def test_local(seed, cross, similarity, outside):
    g = torch.Generator().manual_seed(seed)
    cls, inside = torch.randn(3, 4, 7, generator=g), torch.rand(3, 4, generator=g)
    fg, bg = torch.randn(5, 7, generator=g), torch.randn(1, 7, generator=g)
    inside[0, 0], tags = .5, (torch.rand(3, 5, generator=g) > .5).float()
    slow = slow_local(*(tensor.tolist() for tensor in (cls, inside, fg, bg, tags)), cross, similarity, outside)
    assert abs(local_loss(cls, inside, fg, bg, tags, cross, similarity, outside).item() - slow) < 1e-5


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('cross', [True, False])
@pytest.mark.parametrize('tag_reduce', ['sum', 'mean'])
@pytest.mark.parametrize('similarity', ['map', 'clamp'])
@pytest.mark.parametrize('negatives', ['background', 'classes'])
def test_lea(seed, cross, tag_reduce, similarity, negatives):
    g = torch.Generator().manual_seed(seed)
    patch, fg, bg = torch.randn(3, 6, 7, generator=g), torch.randn(4, 7, generator=g), torch.randn(1, 7, generator=g)
    mask, tags = (torch.rand(3, 6, 1, generator=g) > .4).float(), (torch.rand(3, 4, generator=g) > .5).float()
    tags[0], mask[1] = 0, 0
    inside, outside = patch*mask, patch*(1 - mask)
    settings = .3, .5, cross, tag_reduce, similarity, negatives
    slow = slow_lea(*(tensor.tolist() for tensor in (inside, outside, fg, bg, tags)), *settings)
    assert abs(lea_loss(inside, outside, fg, bg, tags, *settings).item() - slow) < 1e-5


def soft_margin(logits, tags):
    sigmoid = lambda x: 1/(1 + math.exp(-x))
    terms = [y*math.log(sigmoid(x)) + (1 - y)*math.log(1 - sigmoid(x))
             for row, ys in zip(logits, tags) for x, y in zip(row, ys)]
    return -sum(terms)/len(terms)


def test_classification_terms():
    from dalnet.model import DALNetOutput, losses
    out = DALNetOutput(**{k: None for k in DALNetOutput.__dataclass_fields__})
    out.logits, out.inter_logits, tags = torch.randn(3, 5), torch.randn(3, 5), (torch.rand(3, 5) > .5).float()
    terms = losses(out, tags, dict(im=0, ex=0))
    assert abs(terms['cls'].item() - soft_margin(out.logits.tolist(), tags.tolist())) < 1e-5
    assert abs(terms['inter'].item() - soft_margin(out.inter_logits.tolist(), tags.tolist())) < 1e-5


@pytest.mark.parametrize('seed', range(3))
def test_ptc(seed):
    g = torch.Generator().manual_seed(seed)
    patch = torch.randn(2, 5, 3, 4, generator=g)
    label = torch.tensor([0, 1, 4, 255])[torch.randint(0, 4, (2, 3, 4), generator=g)]
    same, different = [], []
    for x, y in zip(patch.flatten(2).transpose(1, 2).tolist(), label.flatten(1).tolist()):
        for i in range(12):
            for j in range(12):
                if i == j or 255 in (y[i], y[j]): continue
                (same if y[i] == y[j] else different).append(abs(cos(x[i], x[j])))
    want = .5*(1 - sum(same)/(len(same) + 1)) + .5*sum(different)/(len(different) + 1)
    assert abs(ptc_loss(patch, label).item() - want) < 1e-5


def slow_enlarge(rows, H, W):
    "Bilinear, half-pixel centres, as align_corners=False"
    h, w = len(rows), len(rows[0])
    def at(i, n, N):
        x = max(0., (i + .5)*n/N - .5); a = min(int(x), n - 1)
        return a, min(a + 1, n - 1), x - a
    result = []
    for y in range(H):
        y0, y1, v = at(y, h, H)
        row = []
        for x in range(W):
            x0, x1, u = at(x, w, W)
            row.append((1 - v)*((1 - u)*rows[y0][x0] + u*rows[y0][x1]) + v*((1 - u)*rows[y1][x0] + u*rows[y1][x1]))
        result.append(row)
    return result


def slow_softmax(values):
    top = max(values); e = [math.exp(v - top) for v in values]
    return [v/sum(e) for v in e]


@pytest.mark.parametrize('seed', range(3))
def test_seg(seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 3, 4, generator=g)
    label = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (2, 7, 8), generator=g)]
    ground, things = [], []
    for image, labels in zip(logits.tolist(), label.tolist()):
        large = [slow_enlarge(channel, 7, 8) for channel in image]
        for y in range(7):
            for x in range(8):
                if (c := labels[y][x]) == 255: continue
                (things if c else ground).append(-math.log(slow_softmax([channel[y][x] for channel in large])[c]))
    want = .5*sum(ground)/len(ground) + .5*sum(things)/len(things)
    assert abs(seg_loss(logits, label).item() - want) < 1e-5


@pytest.mark.parametrize('seed', range(3))
def test_collision(seed):
    "Of each pixel -ln sum_k q_k p_k, weighted by the background's share of it, and by the classes'"
    g = torch.Generator().manual_seed(seed)
    logits, classes = torch.randn(2, 5, 3, 4, generator=g), torch.tensor([[3, 0], [1, 2]])
    soft = (3*torch.randn(2, 3, 7, 8, generator=g)).softmax(1)
    soft[:, :, :, 6:] = 0                                                # padding
    sums, totals = [0, 0], [0, 0]
    for image, labels, own in zip(logits.tolist(), soft.tolist(), classes.tolist()):
        large = [slow_enlarge(channel, 7, 8) for channel in image]
        for y in range(7):
            for x in range(6):
                p, q = slow_softmax([channel[y][x] for channel in large]), [channel[y][x] for channel in labels]
                both = -math.log(sum(q[k]*p[c] for k, c in enumerate([0, own[0] + 1, own[1] + 1])))
                for kind, weight in enumerate((q[0], 1 - q[0])):
                    sums[kind] += weight*both
                    totals[kind] += weight
    want = .5*sums[0]/totals[0] + .5*sums[1]/totals[1]
    assert abs(collision_loss(logits, soft, classes).item() - want) < 1e-5


def slow_lattice(features, values):
    "Adams' filter with a dictionary of vertices: splat, blur along one direction after the other, slice"
    d = len(features[0])
    corners = []
    for f in features:
        scaled = [x*(d + 1)*math.sqrt(2/3)/math.sqrt((i + 1)*(i + 2)) for i, x in enumerate(f)]
        point, total = [0.]*(d + 1), 0.
        for i in range(d, 0, -1):
            point[i] = total - i*scaled[i - 1]; total += scaled[i - 1]
        point[0] = total
        nearest = [round(x/(d + 1))*(d + 1) for x in point]
        off = round(sum(nearest)/(d + 1))
        order = sorted(range(d + 1), key=lambda i: (point[i] - nearest[i], -i))   # most rounded up first
        for i in (order[:off] if off > 0 else order[off:] if off < 0 else []): nearest[i] -= math.copysign(d + 1, off)
        order = sorted(range(d + 1), key=lambda i: nearest[i] - point[i])           # descending remainder
        rest = [(point[i] - nearest[i])/(d + 1) for i in order]
        weights = [1 - rest[0] + rest[d]] + [rest[d - k] - rest[d - k + 1] for k in range(1, d + 1)]
        keys = []
        for k in range(d + 1):
            key = list(nearest)
            for i in order: key[i] += k
            for i in order[d + 1 - k:]: key[i] -= d + 1
            keys.append(tuple(int(round(x)) for x in key))
        corners.append(list(zip(keys, weights)))
    table = {}
    for found, v in zip(corners, values):
        for key, w in found: table[key] = [a + w*b for a, b in zip(table.get(key, [0.]*len(v)), v)]
    zero = [0.]*len(values[0])
    for direction in range(d + 1):
        def step(key, s, direction=direction):
            return tuple(x + s*(1 - (d + 1)*(i == direction)) for i, x in enumerate(key))
        around = {key: (table.get(step(key, 1), zero), table.get(step(key, -1), zero)) for key in table}
        table = {key: [a + .5*(b + c) for a, b, c in zip(value, *around[key])] for key, value in table.items()}
    return [[sum(w*table[k][c] for k, w in found)/(1 + 2**-d) for c in range(len(zero))] for found in corners]


@pytest.mark.parametrize('n, d', [(1, 5), (40, 5), (60, 2), (25, 1), (30, 3)])
def test_lattice(n, d):
    g = torch.Generator().manual_seed(n)
    features = torch.randn(n, d, generator=g, dtype=torch.double)*1.5
    values = torch.rand(n, 3, generator=g, dtype=torch.double)
    got = PermutohedralLattice(features).filter(values, symmetric=False)
    want = torch.tensor(slow_lattice(features.tolist(), values.tolist()), dtype=torch.double)
    assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize('seed', range(3))
def test_dense_energy(seed):
    "Value and gradient as rloss defines them, from loops over pixels"
    g = torch.Generator().manual_seed(seed)
    H, W, K, B = 8, 12, 3, 2
    image = 255*torch.rand(B, 3, H, W, generator=g, dtype=torch.double)
    roi = torch.tensor([[0, 8, 0, 12], [2, 8, 1, 10]])
    label = torch.tensor([0, 1, 255])[torch.randint(0, 3, (B, H, W), generator=g)]
    logits = torch.randn(B, K, H, W, generator=g, dtype=torch.double, requires_grad=True)
    loss = DenseEnergyLoss(weight=1., sigma_rgb=80., sigma_xy=6.)(image, logits, label, roi)
    gradient, = torch.autograd.grad(loss, logits)
    want, by_prob = 0., torch.zeros(B, K, H//2, W//2, dtype=torch.double)
    for b in range(B):
        soft = [[slow_softmax([logits[b, k, y, x].item() for k in range(K)]) for x in range(W)] for y in range(H)]
        points, S, gate, inside = [], [], [], []
        for y in range(0, H, 2):
            for x in range(0, W, 2):
                corners = (soft[y][x], soft[y + 1][x], soft[y][x + 1], soft[y + 1][x + 1])
                p = [sum(corner[k] for corner in corners)/4 for k in range(K)]
                r = float(roi[b, 0] <= y < roi[b, 1] and roi[b, 2] <= x < roi[b, 3])
                points.append([x/2/3, y/2/3] + [image[b, c, y, x].item()/80 for c in range(3)])
                S.append([r*value for value in p]); inside.append(r)
                gate.append(1. if label[b, y, x] == 255 else max(0., r - max(p)))
        WS = slow_lattice(points, S)
        for i, (s, ws, is_open, r) in enumerate(zip(S, WS, gate, inside)):
            for k in range(K):
                want -= s[k]*is_open*ws[k]/B
                by_prob[b, k, i//(W//2), i % (W//2)] = -2*is_open*ws[k]*r/B
    assert abs(loss.item() - want) < 1e-5*max(1, abs(want))
    small = torch.nn.functional.avg_pool2d(logits.softmax(1), 2)
    by_logits, = torch.autograd.grad(small, logits, by_prob)
    assert (gradient - by_logits).abs().max() < 1e-5


def slow_par(image, mask, n_iter):
    "Refinement of one image (3,h,w) and its maps (K,h,w), pixel by pixel"
    _, h, w = image.shape
    offsets = [(d*a, d*b) for d in (1, 2, 4, 8, 12, 24) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    clamp = lambda y, x: (min(max(y, 0), h - 1), min(max(x, 0), w - 1))
    std = lambda v: math.sqrt(sum((x - sum(v)/len(v))**2 for x in v)/(len(v) - 1))
    distances = [math.hypot(*offset) for offset in offsets]
    near = slow_softmax([-(x/(std(distances) + 1e-8)/.3)**2 for x in distances])
    around = {(y, x): [clamp(y + a, x + b) for a, b in offsets] for y in range(h) for x in range(w)}
    weight = {}
    for (y, x), places in around.items():
        score = [0.]*len(offsets)
        for c in range(3):
            values = [image[c, v, u].item() for v, u in places]
            s = std(values) + 1e-8
            score = [t - (abs(v - image[c, y, x].item())/s/.3)**2/3 for t, v in zip(score, values)]
        weight[y, x] = [a + .01*b for a, b in zip(slow_softmax(score), near)]
    maps = {(k, y, x): mask[k, y, x].item() for k in range(len(mask)) for y in range(h) for x in range(w)}
    for _ in range(n_iter):
        maps = {(k, y, x): sum(w*maps[k, v, u] for w, (v, u) in zip(weight[y, x], around[y, x])) for k, y, x in maps}
    return torch.tensor([[[maps[k, y, x] for x in range(w)] for y in range(h)] for k in range(len(mask))])


def test_par():
    g = torch.Generator().manual_seed(0)
    image, mask = 255*torch.rand(2, 3, 7, 9, generator=g), torch.rand(2, 2, 7, 9, generator=g)
    got = PAR(n_iter=3)(image, mask)
    for b in range(2): assert (got[b] - slow_par(image[b], mask[b], 3)).abs().max() < 1e-5

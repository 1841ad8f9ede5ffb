"""Slow forms of the published recipe (ToCo, Ru et al., CVPR 2023): NumPy and plain loops, written from the chapters

`python tests/slow_forms.py` writes the inputs and outputs in tests/golden again.
"""
import json
import math
from pathlib import Path
import numpy as np

GOLDEN = Path(__file__).parent/'golden'
IGNORE = 255


def taps(n, m, antialias=False, corners=False):
    "For each of m outputs, the inputs (of n) that it reads, with their weights: bilinear, along one axis"
    found = []
    for i in range(m):
        if corners: at = i*(n - 1)/max(1, m - 1)
        else: at = (i + .5)*n/m - .5
        if antialias and n > m:
            weights = {j: max(0., 1 - abs(j - at)*m/n) for j in range(n)}
            total = sum(weights.values())
            found.append({j: weight/total for j, weight in weights.items() if weight})
        else:
            at = min(max(at, 0.), n - 1.)
            low = int(at)
            found.append({low: 1 - (at - low)} | ({low + 1: at - low} if low + 1 < n else {}))
    return found


def resize(x, size, antialias=False, corners=False):
    "(..., h, w) -> (..., *size)"
    x = np.asarray(x, float)
    rows, columns = (taps(n, m, antialias, corners) for n, m in zip(x.shape[-2:], size))
    out = np.zeros((*x.shape[:-2], *size))
    for y, row in enumerate(rows):
        for z, column in enumerate(columns):
            for i, a in row.items():
                for j, b in column.items(): out[..., y, z] += a*b*x[..., i, j]
    return out


def softmax(scores):
    "Probabilities of a list of scores"
    top = max(scores)
    terms = [math.exp(score - top) for score in scores]
    return [term/sum(terms) for term in terms]


def network(image, weight, slope, patch=4):
    "A stand-in for a network: (3,H,W) -> activations (C,H/patch,W/patch) from patch means, unlike those of the flip"
    h, w = (side//patch for side in image.shape[-2:])
    out = np.zeros((len(weight), h, w))
    for c in range(len(weight)):
        for y in range(h):
            for x in range(w):
                square = image[:, patch*y:patch*(y + 1), patch*x:patch*(x + 1)]
                out[c, y, x] = sum(weight[c][k]*square[k].mean() for k in range(3)) + slope[c]*(x + .5)/w
    return out


def multi_scale_cam(model, image, scales=(1., .5, 1.5), antialias=False):
    "CAMs (C,H,W) of one image (3,H,W): maximum over flips, ReLU, sum over scales, minimum to 0 and maximum to 1"
    H, W = image.shape[-2:]
    total = 0.
    for scale in scales:
        view = image if scale == 1 else resize(image, (int(H*scale), int(W*scale)), antialias)
        plain = resize(model(view), (H, W))
        flipped = resize(model(view[..., ::-1]), (H, W))[..., ::-1]
        total = total + np.maximum(np.maximum(plain, flipped), 0)
    for cam in total:
        cam -= cam.min()
        cam /= cam.max() + 1e-5
    return total


def cam_to_label(cam, tags, high, low, box=None):
    "Labels (H,W) of one image's CAMs (C,H,W); box is (y0,y1,x0,x1)"
    C, H, W = cam.shape
    label = np.zeros((H, W), int)
    for y in range(H):
        for x in range(W):
            values = [cam[c, y, x]*tags[c] for c in range(C)]
            best = max(range(C), key=lambda c: values[c])
            if values[best] > high: label[y, x] = best + 1
            elif values[best] > low: label[y, x] = IGNORE
            inside = box is None or (box[0] <= y < box[1] and box[2] <= x < box[3])
            if not inside: label[y, x] = IGNORE
    return label


def neighbours(y, x, H, W):
    "The 48 neighbours of a pixel, as (row, column, distance); those beyond the border are replaced by border pixels"
    for d in (1, 2, 4, 8, 12, 24):
        for dy in (-d, 0, d):
            for dx in (-d, 0, d):
                if dy or dx: yield min(max(y + dy, 0), H - 1), min(max(x + dx, 0), W - 1), math.hypot(dy, dx)


def par(image, maps, n_iter=10):
    "Pixel-adaptive refinement of maps (K,h,w) on an image (3,H,W) in 0-255"
    H, W = image.shape[-2:]
    maps, image = resize(maps, (H, W), corners=True), np.asarray(image, float)
    weight = {}
    for y in range(H):
        for x in range(W):
            around = list(neighbours(y, x, H, W))
            colours = np.array([image[:, i, j] for i, j, _ in around])                  # (48,3)
            deviation = colours.std(0, ddof=1) + 1e-8
            near = np.array([distance for *_, distance in around])
            colour = softmax([-np.mean((abs(c - image[:, y, x])/deviation/.3)**2) for c in colours])
            place = softmax(-(near/(near.std(ddof=1) + 1e-8)/.3)**2)
            weight[y, x] = [(i, j, a + .01*b) for (i, j, _), a, b in zip(around, colour, place)]
    for _ in range(n_iter):
        new = np.zeros_like(maps)
        for (y, x), terms in weight.items():
            for i, j, a in terms: new[:, y, x] += a*maps[:, i, j]
        maps = new
    return maps


def vote(image, cam, tags, background):
    "The winner (H,W) among a constant background score and an image's own CAMs, after refinement at half size"
    size = image.shape[-2:]
    half = [side//2 for side in size]
    classes = [c for c in range(len(tags)) if tags[c]]
    small = resize(image, half)
    scores = np.concatenate([np.full((1, *half), background), resize(cam[classes], half)])
    for y in range(half[0]):
        for x in range(half[1]): scores[:, y, x] = softmax(scores[:, y, x])
    refined = resize(par(small, scores), size)
    numbers = np.array([0, *(c + 1 for c in classes)])
    return numbers[refined.argmax(0)]


def refine_labels(image, cam, tags, high, low, box=None):
    "Pixel labels (H,W) of one image (3,H,W) in 0-255 from its CAMs (C,H,W)"
    strict, lenient = (vote(image, cam, tags, score) for score in (high, low))
    label = strict.copy()
    for y in range(label.shape[0]):
        for x in range(label.shape[1]):
            inside = box is None or (box[0] <= y < box[1] and box[2] <= x < box[3])
            if strict[y, x] == 0 and lenient[y, x] != 0 or not inside: label[y, x] = IGNORE
    return label


def ptc_loss(patch, label):
    "Patch token contrast of tokens (B,D,h,w) with labels (B,h,w)"
    same, other = [0., 0], [0., 0]
    for tokens, labels in zip(patch.reshape(*patch.shape[:2], -1), label.reshape(len(label), -1)):
        for i in range(len(labels)):
            for j in range(len(labels)):
                if i == j or IGNORE in (labels[i], labels[j]): continue
                a, b = tokens[:, i], tokens[:, j]
                cosine = abs(sum(a*b))/math.sqrt(sum(a*a))/math.sqrt(sum(b*b))
                pairs = same if labels[i] == labels[j] else other
                pairs[0] += cosine
                pairs[1] += 1
    return .5*(1 - same[0]/(same[1] + 1)) + .5*other[0]/(other[1] + 1)


def seg_loss(logits, label):
    "Mean of the cross-entropies of background pixels and of class pixels; logits (B,K,H,W), label (B,H,W)"
    ground, things = [], []
    for b, y, x in np.ndindex(label.shape):
        k = label[b, y, x]
        if k == IGNORE: continue
        loss = -math.log(softmax(logits[b, :, y, x])[k])
        (things if k else ground).append(loss)
    return .5*sum(ground)/len(ground) + .5*sum(things)/len(things)


def learning_rate(step, total, lr, warmup, ratio, power):
    "Learning rate of a step, counted from 0; the warm-up starts at lr x ratio"
    if step < warmup: return lr*(ratio + (1 - ratio)*step/warmup)
    return lr*(1 - step/total)**power


def loss_weights(dataset, step):
    "Weights of the losses at a step, counted from 0, and which CAM labels pixels"
    starts = dict(voc=dict(seg=2000, contrast=-1, final=-1), coco=dict(seg=8000, contrast=12000, final=12000))[dataset]
    weights = dict(cls=1., inter=1., ptc=0., ctc=0., seg=0., reg=0.)
    if step > starts['contrast']: weights |= dict(ptc=.2, ctc=.5)
    if step > starts['seg']: weights |= dict(seg=.1, reg=.05)
    return weights | dict(source='final' if step > starts['final'] else 'inter')


def view_flags(cam, tags, high, low, corners, size):
    "For each local view with its upper left corner at (y,x): 1 if it shows enough of a tagged object, else 0"
    flags = []
    for y, x in corners:
        total = 0
        for i in range(y, y + size):
            for j in range(x, x + size):
                best = max(cam[c, i, j]*tags[c] for c in range(len(tags)))
                if best > low: total += 1                                               # perhaps an object
                if best >= high: total += 1                                             # an object
        flags.append(0 if total/size**2 <= .2 else 1)
    return flags


def ctc_loss(student, teacher, flags, temperature):
    """Class token contrast: student (V,B,D) of all views, teacher (2,B,D) of the global ones, flags (B,V), 0 = negative

    Its temperature is 0.5 for VOC and 1 for COCO.
    """
    loss = 0.
    for b in range(len(flags)):
        for view in teacher[:, b]:
            close = [math.exp(sum(view*token)/temperature) for token in student[:, b]]
            negative = sum(value for value, flag in zip(close, flags[b]) if not flag)
            positives = [value for value, flag in zip(close, flags[b]) if flag]
            terms = [-math.log(value/(value + negative + 1e-4)) for value in positives]
            terms.append(-math.log(1/(1 + negative + 1e-4)))                            # of a dot product of 0
            loss += sum(terms)/2/(len(positives) + 1e-4)
    return loss/len(flags)


def pictures(rng, B, H, W):
    "Images (B,3,H,W) of whole numbers in 0-255: a block of another colour on a noisy ground"
    image = np.zeros((B, 3, H, W))
    for b in range(B):
        image[b] = rng.integers(40, 90, (3, 1, 1))
        y, x = rng.integers(1, H//2), rng.integers(1, W//2)
        image[b, :, y:y + H//2, x:x + W//2] = rng.integers(130, 220, (3, 1, 1))
    return (image + rng.integers(-20, 21, image.shape)).astype(int)


def few(rng, shape, low=0., high=1., digits=2):
    "Random numbers of few digits, so that the files stay small"
    return rng.uniform(low, high, shape).round(digits)


def record_cam():
    rng = np.random.default_rng(0)
    given = dict(image=pictures(rng, 1, 16, 24), weight=few(rng, (3, 3), -3, 3), slope=few(rng, 3, -2, 2),
                 scales=[1., .5, 1.5])
    return given, dict(cam=all_cams(given, False)[:, :, ::2, ::3], antialias=all_cams(given, True)[:, :, ::2, ::3])


def all_cams(given, antialias):
    "CAMs (B,C,H,W) of the recorded images"
    def model(image): return network(image, given['weight'], given['slope'])
    return np.stack([multi_scale_cam(model, image/255, given['scales'], antialias) for image in given['image']])


def record_label():
    rng = np.random.default_rng(1)
    given = dict(cam=few(rng, (2, 3, 6, 8)), tags=np.array([[1, 0, 1], [0, 1, 0]]), high=.7, low=.25,
                 box=np.array([[0, 6, 0, 8], [1, 5, 2, 7]]))
    label = [cam_to_label(cam, tags, given['high'], given['low'], box)
             for cam, tags, box in zip(given['cam'], given['tags'], given['box'])]
    single = [cam_to_label(cam, tags, .5, .5) for cam, tags in zip(given['cam'], given['tags'])]
    return given, dict(label=np.stack(label), single=np.stack(single))


def record_par():
    rng = np.random.default_rng(2)
    given = dict(image=pictures(rng, 1, 9, 12), maps=few(rng, (1, 2, 5, 6)))
    return given, dict(refined=np.stack([par(image, maps) for image, maps in zip(given['image'], given['maps'])]))


def record_refine():
    rng = np.random.default_rng(9)
    image = pictures(rng, 2, 10, 12)
    bright = image.mean(1) > 110                                                        # (2,10,12)
    halves = np.array([np.arange(12) < 6, np.arange(12) >= 6])                          # left and right columns
    cam = (.05 + .9*bright[:, None]*halves[None, :, None] + few(rng, (2, 2, 10, 12), -.05, .05)).round(2)
    given = dict(image=image, cam=cam, tags=np.array([[1, 1], [0, 1]]), high=.7, low=.25,
                 box=np.array([[0, 10, 0, 12], [2, 10, 0, 11]]))
    label = [refine_labels(image, cam, tags, given['high'], given['low'], box) for image, cam, tags, box
             in zip(given['image'], given['cam'], given['tags'], given['box'])]
    return given, dict(label=np.stack(label))


def record_pseudo():
    rng = np.random.default_rng(4)
    given = dict(image=pictures(rng, 2, 12, 16), weight=few(rng, (3, 3), -3, 3), slope=few(rng, 3, -2, 2),
                 inter_weight=few(rng, (3, 3), -3, 3), inter_slope=few(rng, 3, -2, 2), scales=[1., .5, 1.5],
                 tags=np.array([[1, 0, 1], [0, 1, 0]]), high=.7, low=.25,
                 box=np.array([[0, 12, 0, 16], [4, 12, 0, 12]]))
    return given, pseudo(given)


def pseudo(given, antialias=False, patch=4):
    "Patch labels (B,h,w) and pixel labels (B,H,W) of the recorded images"
    found = dict(patch=[], pixel=[])
    def final(view): return network(view, given['weight'], given['slope'])
    def inter(view): return network(view, given['inter_weight'], given['inter_slope'])
    for image, tags, box in zip(given['image'], given['tags'], given['box']):
        cam, middle = (multi_scale_cam(model, image/255, given['scales'], antialias) for model in (final, inter))
        grid = [side//patch for side in image.shape[-2:]]
        thresholds = given['high'], given['low']
        found['patch'].append(cam_to_label(resize(middle, grid), tags, *thresholds, [side//patch for side in box]))
        found['pixel'].append(refine_labels(image, cam, tags, *thresholds, box))
    return {name: np.stack(labels) for name, labels in found.items()}


def record_patch_contrast():
    rng = np.random.default_rng(5)
    given = dict(patch=few(rng, (2, 5, 4, 6), -1, 1), label=rng.choice([0, 1, 3, IGNORE], (2, 4, 6)))
    return given, dict(loss=ptc_loss(given['patch'], given['label']))


def record_cross_entropy():
    rng = np.random.default_rng(6)
    given = dict(logits=few(rng, (2, 4, 5, 6), -3, 3), label=rng.choice([0, 0, 1, 3, IGNORE], (2, 5, 6)))
    return given, dict(loss=seg_loss(given['logits'], given['label']))


STEPS = [0, 1, 749, 1499, 1500, 1501, 2000, 2001, 7999, 8000, 8001, 12000, 12001, 19999]


def record_schedule():
    given = dict(steps=STEPS, total=20000, lr=6e-5, warmup=1500, ratio=1e-6, power=.9)
    options = {name: given[name] for name in ('total', 'lr', 'warmup', 'ratio', 'power')}
    return given, dict(learning_rate=[learning_rate(step, **options) for step in STEPS],
                       voc=[loss_weights('voc', step) for step in STEPS],
                       coco=[loss_weights('coco', step) for step in STEPS])


def record_class_contrast():
    rng = np.random.default_rng(7)
    cam = few(rng, (2, 2, 12, 12))
    cam[..., 6:] *= .3                                                                  # no object on the right
    given = dict(student=few(rng, (10, 2, 6), -1, 1), teacher=few(rng, (2, 2, 6), -1, 1), temperature=.5,
                 cam=cam.round(2), tags=np.array([[1, 0], [0, 1]]), high=.7, low=.25, size=4,
                 corners=rng.integers(0, 8, (2, 8, 2)))
    views = zip(given['cam'], given['tags'], given['corners'])
    flags = [[1, 1, *view_flags(cam, tags, given['high'], given['low'], corners, given['size'])]
             for cam, tags, corners in views]
    return given, dict(flags=flags, loss=ctc_loss(given['student'], given['teacher'], flags, given['temperature']))


RECORDS = dict(cam=record_cam, label=record_label, par=record_par, refine=record_refine, pseudo=record_pseudo,
               patch_contrast=record_patch_contrast, cross_entropy=record_cross_entropy, schedule=record_schedule,
               class_contrast=record_class_contrast)


def plain(value):
    "Arrays as nested lists, rounded to 7 digits after the point where they have more"
    if isinstance(value, dict): return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray): return plain(value.tolist())
    if isinstance(value, list): return [plain(inner) for inner in value]
    if isinstance(value, float) and abs(value) >= 1e-3: return round(value, 7)
    return value


def arrays(value):
    "Nested lists of numbers as arrays"
    if isinstance(value, dict): return {name: arrays(inner) for name, inner in value.items()}
    if isinstance(value, list) and not isinstance(value[0], dict): return np.array(value)
    return value


def golden(name):
    "The recorded inputs and outputs of one part"
    record = json.loads((GOLDEN/f'{name}.json').read_text())
    return arrays(record['given']), arrays(record['found'])


if __name__ == '__main__':
    GOLDEN.mkdir(exist_ok=True)
    for name, record in RECORDS.items():
        given, found = record()
        text = json.dumps(plain(dict(given=given, found=found)), separators=(',', ':'))
        (GOLDEN/f'{name}.json').write_text(text + '\n')
        print(f'{name}: {len(text):,} bytes')

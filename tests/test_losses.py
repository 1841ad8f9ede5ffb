"GIA and LEA against slow, independent implementations: plain Python loops over images, patches and classes"
import math
import pytest, torch
from dalnet.gia import gia_loss
from dalnet.lea import lea_loss


def cos(a, b):
    "Cosine of two lists of numbers, 0 where one of them is zero"
    norm = lambda v: math.sqrt(sum(x*x for x in v))
    return sum(x*y for x, y in zip(a, b))/(norm(a)*norm(b)) if norm(a) and norm(b) else 0.


def clip(x, low, high): return min(max(x, low), high)


def slow_gia(cls, text_fg, text_bg, tags, cross, similarity):
    positive = (lambda c: clip((1 + c)/2, 1e-6, 1 - 1e-6)) if similarity == 'map' else (lambda c: clip(c, 1e-4, 1 - 1e-4))
    total = 0.
    for v, y in zip(cls, tags):
        for c in range(len(y)):
            if y[c]: total -= math.log(positive(cos(v, text_fg[c])))
        if cross: total -= math.log(1 - positive(cos(v, text_bg[0])))
    return total/len(cls)


def slow_lea(fg, bg, text_fg, text_bg, tags, lam, tau, cross, tag_reduce):
    total, n = 0., len(fg)*len(fg[0])
    for patches_fg, patches_bg, y in zip(fg, bg, tags):
        tagged = [c for c in range(len(y)) if y[c]]
        share = 1/max(1, len(tagged)) if tag_reduce == 'mean' else 1.
        for f, b in zip(patches_fg, patches_bg):
            if not cross:
                total -= sum(math.log(clip((1 + cos(f, text_fg[c]))/2, 1e-6, 1 - 1e-6)) for c in tagged)/max(1, len(tagged))
                continue
            plus, minus = share*sum(cos(f, text_fg[c]) for c in tagged), cos(f, text_bg[0])
            total -= math.log(math.exp(plus/tau)/(math.exp(plus/tau) + math.exp(minus/tau)))
            plus, minus = cos(b, text_bg[0]), share*sum(cos(b, text_fg[c]) for c in tagged)
            total -= lam*math.log(math.exp(plus/tau)/(math.exp(plus/tau) + math.exp(minus/tau)))
    return total/n


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('cross', [True, False])
@pytest.mark.parametrize('similarity', ['map', 'clamp'])
def test_gia(seed, cross, similarity):
    g = torch.Generator().manual_seed(seed)
    cls, fg, bg = (torch.randn(n, 7, generator=g) for n in (5, 4, 1))
    tags = (torch.rand(5, 4, generator=g) > .5).float()
    want = slow_gia(*(o.tolist() for o in (cls, fg, bg, tags)), cross, similarity)
    assert abs(gia_loss(cls, fg, bg, tags, cross, similarity).item() - want) < 1e-5


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('cross', [True, False])
@pytest.mark.parametrize('tag_reduce', ['sum', 'mean'])
def test_lea(seed, cross, tag_reduce):
    g = torch.Generator().manual_seed(seed)
    patch, fg, bg = torch.randn(3, 6, 7, generator=g), torch.randn(4, 7, generator=g), torch.randn(1, 7, generator=g)
    mask, tags = (torch.rand(3, 6, 1, generator=g) > .4).float(), (torch.rand(3, 4, generator=g) > .5).float()
    tags[0] = 0; mask[1] = 0
    inside, outside = patch*mask, patch*(1 - mask)
    want = slow_lea(*(o.tolist() for o in (inside, outside, fg, bg, tags)), .3, .5, cross, tag_reduce)
    assert abs(lea_loss(inside, outside, fg, bg, tags, .3, .5, cross, tag_reduce).item() - want) < 1e-5

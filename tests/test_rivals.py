"The rivals in the same harness: what each method computes, and that ToCo resumes exactly"
import shutil
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from dalnet.build import build_model, build_text, training_data
from dalnet.checkpoint import Checkpoint
from dalnet.config import PRESETS
from dalnet.core import InputError
from dalnet.step import Phase, TrainStep, phase_at, start_accelerator, take_step
from dalnet.training import train
from dalnet.watch import read_log

TERMS = dict(dalnet={'cls', 'inter', 'im', 'ex', 'ptc', 'seg', 'reg', 'local'},
             toco={'cls', 'inter', 'ptc', 'ctc', 'seg', 'reg'},
             vit={'cls', 'seg', 'reg'}, cnn={'cls', 'seg', 'reg'})
CNN = dict(encoder='hybrid:tf_efficientnet_lite0', encoder_options=dict(depth=0))


@pytest.fixture
def config(shapes, tmp_path):
    return replace(PRESETS['demo'], data=str(shapes), out=str(tmp_path/'run'), iterations=4, batch_size=4, warmup=1,
                   seg_start=1, save_every=2, log_every=1, local_crops=3, local_size=32, global_views=2)


def of(config, method, **changes):
    "The settings of a method"
    return replace(config, method=method, **(CNN if method == 'cnn' else {}) | changes)


@pytest.mark.parametrize('method', TERMS)
def test_a_step_of_each_method(config, method):
    run = of(config, method)
    assert {name for name, weight in run.weights.items() if weight > 0} == TERMS[method]
    accelerator, data = start_accelerator(run), training_data(run)
    torch.manual_seed(0)
    model = build_model(run, build_text(run, data.classes)).train()
    step, optimizer = accelerator.prepare(TrainStep(model, run), torch.optim.AdamW(model.parameters()))
    batch = torch.utils.data.default_collate([data[i] for i in range(4)])
    assert ('local' in batch) == (method == 'dalnet') and ('views' in batch) == (method in ('dalnet', 'toco'))
    values, _ = take_step(accelerator, step, optimizer, batch, phase_at(run, 2), run)
    assert set(values) == TERMS[method] | {'total', 'grad'}
    assert all(value == value for value in values.values())
    total = sum(run.weights[name]*values[name] for name in TERMS[method])
    assert values['total'] == pytest.approx(total, rel=1e-5)
    assert (model.contrast is not None) == (method == 'toco')
    assert any('contrast' in name for name in model.state_dict()) == (method == 'toco')


def test_toco_before_its_contrasts_and_before_segmentation(config):
    run = of(config, 'toco', ptc_start=2, seg_start=3)
    assert [phase_at(run, i)[:2] for i in (2, 3, 4)] == [(False, False), (False, True), (True, True)]
    data = training_data(run)
    step = TrainStep(build_model(run, build_text(run, data.classes)).train(), run)
    batch = torch.utils.data.default_collate([data[i] for i in range(2)])
    assert set(step(batch, Phase(False, False))[0]) == {'cls', 'inter'}
    only = TrainStep(step.model, replace(run, weight_ptc=0.))            # labels are made for the crops alone
    assert phase_at(only.config, 3).contrast and set(only(batch, Phase(False))[0]) == {'cls', 'inter', 'ctc'}


def test_the_intermediate_head_of_a_vit_labels_nothing(config):
    coco = dict(pseudo_source='inter', pseudo_switch=9)
    assert phase_at(of(config, 'toco', **coco), 2).source == 'inter'
    assert phase_at(of(config, 'vit', **coco), 2).source == 'classifier'


def test_toco_in_parts_is_the_same_step(config):
    found = []
    for parts in (1, 2):
        run = of(config, 'toco', accumulate=parts)
        accelerator, data = start_accelerator(run), training_data(run)
        torch.manual_seed(0)
        model = build_model(run, build_text(run, data.classes)).train()
        step, optimizer = accelerator.prepare(TrainStep(model, run), torch.optim.AdamW(model.parameters()))
        torch.manual_seed(0)
        batch = torch.utils.data.default_collate([data[i] for i in range(4)])
        torch.manual_seed(1)                                             # the same crops
        found.append(take_step(accelerator, step, optimizer, batch, phase_at(run, 2), run)[0])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_teacher_follows_and_toco_resumes_to_the_bit(config):
    run = of(config, 'toco')
    whole = train(run)
    state = load_file(whole/'model.safetensors')
    names = [name for name in state if name.startswith('contrast.teacher.')]
    assert names and not all(torch.equal(state[name], state[name.replace('teacher', 'student')]) for name in names)
    resumed = replace(run, out=f'{run.out}_resumed')
    shutil.copytree(Path(run.out)/'iter_000002', Path(resumed.out)/'iter_000002')
    again = train(resumed)
    assert [line['iteration'] for line in read_log(resumed.out)][-1] == 4
    for file in ('model.safetensors', 'optimizer.safetensors'):
        a, b = load_file(whole/file), load_file(again/file)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a), file
    assert not any('teacher' in name for name in load_file(whole/'optimizer.safetensors'))
    assert Checkpoint.load(whole)[0].contrast is not None                # and so it predicts like any other


def test_an_encoder_without_a_class_token(config):
    run = replace(config, method='toco', **CNN)
    with pytest.raises(InputError, match='"toco" contrasts class tokens, and the encoder "hybrid:tf_efficientnet'):
        build_model(run, build_text(run, ('a', 'b')))

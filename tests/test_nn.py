"""Modules and layers: names, states, moves; results and representations as in torch.nn."""

import copy
import math
import re
from collections import OrderedDict

import numpy as np
import pytest

import tinydilate
from tinydilate import Tensor, nn, tensor
from tinydilate.device import MetaArray
from tinydilate.errors import ConfigError, DataError, DeviceError, DtypeError, ShapeError


class Block(nn.Module):
    def __init__(self, twice=False):
        self.conv = nn.Conv2d(2, 2, 3, padding=1, rng=0)
        self.scale = nn.Parameter(np.ones((2, 1, 1), np.float32))
        self.mean = nn.Buffer(np.zeros((2, 1, 1), np.float32))
        self.inner = nn.Sequential(nn.ReLU(), self.conv if twice else nn.Conv2d(2, 3, 1, rng=1))
        self.note = "not a parameter"

    def forward(self, x):
        return self.inner(self.conv(x - self.mean) * self.scale)


NAMES = ["conv.weight", "conv.bias", "scale", "inner.1.weight", "inner.1.bias"]


def image(*shape):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


# ---- names -----------------------------------------------------------------------------------


def test_attributes_are_the_parameters():
    block = Block()
    assert sorted(name for name, _ in block.named_parameters()) == sorted(NAMES)
    assert [name for name, _ in block.named_buffers()] == ["mean"]
    assert list(block.buffers()) == [block.mean]
    assert [name for name, _ in block.named_modules()] == [
        "",
        "conv",
        "inner",
        "inner.0",
        "inner.1",
    ]
    assert list(block.modules())[1] is block.conv
    assert [name for name, _ in block.named_children()] == ["conv", "inner"]
    assert list(block.children()) == [block.conv, block.inner]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in block.parameters())
    block.conv = nn.Conv2d(2, 2, 1)  # replaced, not added
    assert len(list(block.parameters())) == 5
    del block.scale
    assert len(list(block.parameters())) == 4


def test_a_shared_module_is_counted_once():
    block = Block(twice=True)
    assert sorted(block.state_dict()) == ["conv.bias", "conv.weight", "mean", "scale"]
    assert len(list(block.modules())) == 4
    x = image(1, 2, 5, 5)
    block(x).sum().backward()
    assert block.conv.weight.grad is not None


def test_a_shared_parameter_is_counted_once():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.bias"]
    assert len(list(net.parameters())) == 3


def test_a_list_of_modules_is_refused():
    block = Block()
    with pytest.raises(ConfigError, match=r"got a list of them for 'layers'.*Use nn\.Sequential"):
        block.layers = [nn.ReLU(), nn.ReLU()]
    block.numbers = [1, 2]


def test_a_module_without_forward_cannot_be_made():
    class Empty(nn.Module):
        pass

    with pytest.raises(TypeError, match="forward"):
        Empty()


def test_a_parameter_can_be_changed_in_place():
    fixed = np.zeros((3, 2), np.float32)
    fixed.flags.writeable = False
    for data in (fixed, np.zeros((2, 3), np.float32).T, Tensor(np.zeros((3, 2), np.float32))):
        parameter = nn.Parameter(data)
        parameter.data[...] = 1
        assert parameter.data.flags.carray
        assert parameter.requires_grad
    mine = np.zeros(3, np.float32)
    assert nn.Parameter(mine, requires_grad=False).data is mine
    with pytest.raises(DtypeError, match="float32 or float64"):
        nn.Parameter(np.zeros(3, int))


# ---- states ----------------------------------------------------------------------------------


def test_a_state_is_a_snapshot():
    block = Block()
    state = block.state_dict()
    assert sorted(state) == sorted([*NAMES, "mean"])
    before = state["scale"].copy()
    block.scale.data += 1
    assert np.array_equal(state["scale"], before)
    state["conv.bias"][...] = 9
    assert not np.any(block.conv.bias.data == 9)


def test_loading_copies_and_converts():
    one, two = Block(), Block()
    one.scale.data += 5
    state = {name: array.astype(np.float64) for name, array in one.state_dict().items()}
    held = two.scale.data
    assert two.load_state_dict(state) == ([], [])
    assert two.scale.data is held
    assert two.scale.dtype == np.float32
    assert np.array_equal(two.scale.data, one.scale.data)
    state["scale"][...] = 0
    assert np.all(two.scale.data == 6)
    x = image(1, 2, 4, 4)
    assert np.array_equal(one(x).detach().numpy(), two(x).detach().numpy())


def test_loading_says_all_that_is_wrong_and_loads_nothing():
    block = Block()
    before = block.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    del state["conv.bias"]
    state["final.weight"] = np.zeros(3, np.float32)
    state["scale"] = np.zeros(7, np.float32)
    expected = (
        r"expected a state of the same names and shapes .* missing conv\.bias; unexpected "
        r"final\.weight; of another shape scale \(7,\) for \(2, 1, 1\)\. Nothing was loaded\..*"
        r"strict=False"
    )
    with pytest.raises(DataError, match=expected):
        block.load_state_dict(state)
    with pytest.raises(DataError, match=r"differences: of another shape scale \(7,\) for") as error:
        block.load_state_dict(state, strict=False)
    assert "missing" not in str(error.value)
    after = block.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_loading_what_fits():
    block = Block()
    old = block.state_dict()
    state = {"conv.bias": np.full(2, 4.0), "other": np.zeros(1)}
    missing, unexpected = block.load_state_dict(state, strict=False)
    assert sorted(missing) == sorted(name for name in old if name != "conv.bias")
    assert unexpected == ["other"]
    assert np.all(block.conv.bias.data == 4)
    assert np.array_equal(block.conv.weight.data, old["conv.weight"])


def test_a_long_list_of_names_is_cut():
    with pytest.raises(DataError, match=r"unexpected n0, n1, n2, n3, n4, n5 and 14 more\."):
        nn.ReLU().load_state_dict({f"n{k}": np.zeros(1) for k in range(20)})


def test_loading_refuses_what_is_no_state():
    with pytest.raises(DataError, match=r"expected a mapping from names to arrays.*got str"):
        Block().load_state_dict("run/model.safetensors")
    with pytest.raises(
        DataError, match=r"tuple\. load_checkpoint returns \(arrays, note\): pass t"
    ):
        Block().load_state_dict((Block().state_dict(), None))
    for value in ("text", None, MetaArray((2,))):
        with pytest.raises(DataError, match="expected an array of numbers for scale"):
            Block().load_state_dict({"scale": value}, strict=False)
    state = Block().state_dict()
    with pytest.raises(DeviceError, match=r'shapes only\. Build it again with device="cpu"'):
        Block().to("meta").load_state_dict(state)


# ---- device and dtype ------------------------------------------------------------------------


def test_to_dtype_keeps_the_objects_and_their_gradients():
    block = Block()
    held = list(block.parameters())
    block(image(1, 2, 4, 4)).sum().backward()
    grad = block.scale.grad.data.copy()
    assert block.to(np.float64) is block
    assert all(a is b for a, b in zip(held, block.parameters(), strict=True))
    assert {p.dtype for p in held} == {block.mean.dtype} == {np.dtype(np.float64)}
    assert np.array_equal(block.scale.grad.data, grad)
    assert block.scale.grad.dtype == np.float64
    assert block(image(1, 2, 4, 4).astype(np.float64)).dtype == np.float64
    assert block.to("float32").scale.dtype == np.float32
    with pytest.raises(DtypeError, match=r"expected a device .* or float64; got 'int32'"):
        block.to("int32")
    with pytest.raises(DtypeError, match="got 'gpu'"):
        block.to("gpu")


def test_to_meta_and_no_way_back():
    block = Block().to("meta")
    assert {tensor.device for tensor in [*block.parameters(), *block.buffers()]} == {"meta"}
    out = block(Tensor(MetaArray((1, 2, 9, 7))))
    assert (out.shape, out.device) == ((1, 3, 9, 7), "meta")
    assert block.state_dict()["scale"].shape == (2, 1, 1)
    with pytest.raises(DeviceError, match="on the device where it is to compute"):
        block.to("cpu")
    assert block.scale.device == "meta"


def test_meta_layers_take_no_memory():
    layer = nn.Conv2d(512, 4096, 7, dilation=4, device="meta")
    assert isinstance(layer.weight.data, MetaArray)
    assert layer.weight.size == 102_760_448
    assert nn.Linear(10**6, 10**6, device="meta").weight.requires_grad
    with pytest.raises(DeviceError, match="out of cpu, cuda, meta; got 'gpu'"):
        nn.Linear(2, 2, device="gpu")
    with pytest.raises(DtypeError, match="float32 or float64 for parameters"):
        nn.Linear(2, 2, dtype=np.int64)


def test_as_meta_copies_the_structure_alone():
    block = Block(twice=True).requires_grad_(False)
    shadow = nn.as_meta(block)
    assert repr(shadow) == repr(block)
    assert shadow.inner[1] is shadow.conv
    assert shadow.conv.weight.device == "meta"
    assert not shadow.scale.requires_grad
    assert isinstance(shadow.mean, nn.Buffer)
    assert block.conv.weight.device == "cpu"


def test_a_deep_copy_is_independent():
    block = Block()
    twin = copy.deepcopy(block)
    twin.scale.data += 1
    assert np.all(block.scale.data == 1)
    assert isinstance(twin.scale, nn.Parameter)


# ---- modes -----------------------------------------------------------------------------------


def test_train_and_eval_reach_every_module():
    block = Block()
    assert all(module.training for module in block.modules())
    assert block.eval() is block
    assert not any(module.training for module in block.modules())
    assert all(module.training for module in block.train().modules())


def test_zero_grad_and_freezing():
    block = Block()
    x = image(1, 2, 4, 4)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert block.mean.grad is None
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())
    assert block.conv.requires_grad_(False) is block.conv
    block(x).sum().backward()
    assert block.conv.weight.grad is None
    assert block.inner[1].weight.grad is not None
    assert not block.requires_grad_(False)(x).requires_grad


def test_watching_sees_every_call_inside_out():
    block, calls = Block(), []
    x = image(1, 2, 4, 4)
    with nn.watching_modules(calls.append):
        out = block(x)
    block(x)
    expected = [block.conv, block.inner[0], block.inner[1], block.inner, block]
    assert [call.module for call in calls] == expected
    assert calls[-1].inputs[0] is x
    assert calls[-1].output is calls[-2].output is out


# ---- Sequential ------------------------------------------------------------------------------


def test_sequential():
    layers = OrderedDict(conv=nn.Conv2d(2, 3, 1), act=nn.ReLU())
    for net in (nn.Sequential(layers), nn.Sequential(*layers.items())):
        assert [name for name, _ in net.named_children()] == ["conv", "act"]
        assert net[0] is net["conv"] is net.conv is layers["conv"]
        assert net[-1] is layers["act"]
        assert list(net[1:].named_children()) == [("act", layers["act"])]
        assert (len(net), list(net)) == (2, list(layers.values()))
    x = image(1, 2, 4, 4)
    assert np.array_equal(net(x).data, np.maximum(layers["conv"](x).data, 0))
    assert list(nn.Sequential(nn.Conv2d(1, 1, 1)).state_dict()) == ["0.weight", "0.bias"]
    assert "fc-final.weight" in nn.Sequential(("fc-final", nn.Linear(1, 1))).state_dict()
    assert nn.Sequential()(x) is x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.sin,), "expected modules or"),
        ((("a", 3),), "got 3"),
        ((("a.b", nn.ReLU()),), "without a dot.*got 'a.b'"),
        ((("forward", nn.ReLU()),), "got 'forward'"),
        ((("training", nn.ReLU()),), "got 'training'"),
        ((("a", nn.ReLU()), ("a", nn.ReLU())), "each of its own"),
        (((3, nn.ReLU()),), "got 3"),
        ((("", nn.ReLU()),), "got ''"),
    ],
)
def test_sequential_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        nn.Sequential(*arguments)


# ---- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(0, 1, 1), "in_channels should be a whole number of at least 1, got 0"),
        (lambda: nn.Conv2d(1, 2.0, 1), "out_channels should be"),
        (lambda: nn.Conv2d(1, 1, 3, dilation=0), "dilation should be at least 1, got 0"),
        (lambda: nn.Conv2d(1, 1, 3, stride=-1), "stride should be at least 1"),
        (lambda: nn.Conv2d(4, 6, 3, groups=4), "got 4 groups for 4 and 6"),
        (lambda: nn.Conv2d(4, 6, 3, groups=0), "groups should be"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, groups=2), "got 2 groups for 3 and 4"),
        (lambda: nn.Linear(True, 1), "in_features should be"),
        (lambda: nn.MaxPool2d(0), "kernel_size should be at least 1"),
        (lambda: nn.AvgPool2d((1, 2, 3)), "pair of integers"),
        (lambda: nn.ReflectionPad2d((1, 2)), r"\(left, right, top, bottom\); got \(1, 2\)"),
        (lambda: nn.ZeroPad2d(1.5), "whole pixels"),
        (lambda: nn.ReflectionBorder(-1), "padding should be at least 0"),
        (lambda: nn.Upsample(), "got both or neither"),
        (lambda: nn.Upsample(3, 2), "either size or scale_factor; got both"),
    ],
)
def test_layers_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


@pytest.mark.parametrize("p", [-0.1, 1.1, "half", True, math.nan])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(ConfigError, match="probability p from 0 to 1"):
        nn.Dropout(p)


# ---- start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "fan"),
    [
        (lambda: nn.Conv2d(8, 40, (3, 5), groups=2, rng=0), 4 * 15),
        (lambda: nn.ConvTranspose2d(40, 8, 3, groups=2, rng=0), 4 * 9),
        (lambda: nn.Linear(50, 70, rng=0), 50),
    ],
)
def test_layers_start_as_pytorch_s_do(layer, fan):
    made = layer()
    for parameter in (made.weight, made.bias):
        assert np.abs(parameter.data).max() <= 1 / math.sqrt(fan)
    assert made.weight.data.std() == pytest.approx(1 / math.sqrt(3 * fan), rel=0.05)
    assert np.any(made.bias.data)
    assert np.array_equal(made.weight.data, layer().weight.data)


def test_a_seed_gives_the_same_network():
    def draw():
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3))

    tinydilate.manual_seed(7)
    first, second = draw().state_dict(), draw().state_dict()
    assert not np.array_equal(first["0.weight"], first["1.weight"])
    assert not np.array_equal(first["0.weight"], second["0.weight"])
    tinydilate.manual_seed(7)
    again = draw().state_dict()
    assert all(np.array_equal(first[name], again[name]) for name in first)


# ---- layers that need no oracle --------------------------------------------------------------


def test_fused_relu():
    layer = nn.Conv2d(2, 3, 3, rng=0)
    fused = nn.Conv2d(2, 3, 3, rng=0, relu=True)
    x = image(1, 2, 6, 6)
    out = layer(x)
    assert np.any(out.data < 0)
    assert np.array_equal(fused(x).data, np.maximum(out.data, 0))


def test_reflection_border_may_be_wider_than_the_image():
    x = image(1, 2, 3, 2)
    expected = np.pad(x, ((0, 0), (0, 0), (7, 7), (7, 7)), "reflect")
    assert np.array_equal(nn.ReflectionBorder(7)(x).data, expected)


def test_dropout_acts_in_training_only():
    layer = nn.Dropout(0.5)
    x = np.ones((1, 1, 50, 50), np.float32)
    assert set(np.unique(layer(x).data)) == {0, 2}
    assert np.array_equal(layer.eval()(x).data, x)


def test_identity():
    x = image(2, 2)
    assert nn.Identity()(x) is x


# ---- the oracle ------------------------------------------------------------------------------


def pairs(torch):
    """(ours, PyTorch's, input shape) of the same arguments."""
    ours, theirs = nn, torch.nn
    return [
        *(
            (ours.Conv2d(*a, **k), theirs.Conv2d(*a, **k), (2, a[0], 9, 8))
            for a, k in [
                ((2, 3, 3), {}),
                ((2, 3, (3, 1), 2, (2, 0)), {}),
                ((4, 6, 3), {"padding": "same", "dilation": (2, 1), "groups": 2, "bias": False}),
                ((2, 3, 3, 1, 2, 2), {}),
            ]
        ),
        *(
            (ours.ConvTranspose2d(*a, **k), theirs.ConvTranspose2d(*a, **k), (2, a[0], 5, 4))
            for a, k in [
                ((2, 3, 3), {}),
                ((4, 6, 4, 2, 1), {"groups": 2, "bias": False, "output_padding": 1}),
                ((2, 3, 3, (2, 1), 1), {"dilation": 2}),
            ]
        ),
        (ours.Linear(4, 3), theirs.Linear(4, 3), (2, 5, 4)),
        (ours.Linear(4, 3, bias=False), theirs.Linear(4, 3, bias=False), (4,)),
        (ours.MaxPool2d(2), theirs.MaxPool2d(2), (2, 2, 7, 6)),
        (
            ours.MaxPool2d(3, 2, 1, ceil_mode=True),
            theirs.MaxPool2d(3, 2, 1, ceil_mode=True),
            (1, 2, 8, 7),
        ),
        (ours.MaxPool2d(2, 1, 0, 2), theirs.MaxPool2d(2, 1, 0, 2), (1, 2, 8, 7)),
        (ours.AvgPool2d(2), theirs.AvgPool2d(2), (1, 2, 7, 6)),
        (
            ours.AvgPool2d(3, 2, 1, True, False),
            theirs.AvgPool2d(3, 2, 1, True, False),
            (1, 2, 8, 7),
        ),
        (ours.ReLU(), theirs.ReLU(), (2, 3)),
        (ours.Identity(), theirs.Identity(), (2, 3)),
        (ours.Softmax(dim=1), theirs.Softmax(dim=1), (2, 3, 4, 4)),
        (ours.Flatten(), theirs.Flatten(), (2, 3, 4, 4)),
        (ours.Flatten(0, 1), theirs.Flatten(0, 1), (2, 3, 4, 4)),
        (ours.ReflectionPad2d(2), theirs.ReflectionPad2d(2), (1, 2, 4, 4)),
        (ours.ZeroPad2d((1, 2, 0, 3)), theirs.ZeroPad2d((1, 2, 0, 3)), (1, 2, 4, 4)),
        (ours.Upsample(scale_factor=2), theirs.Upsample(scale_factor=2), (1, 2, 3, 4)),
        (
            ours.Upsample((7, 5), mode="bilinear"),
            theirs.Upsample((7, 5), mode="bilinear"),
            (1, 2, 3, 4),
        ),
        (
            ours.Upsample(scale_factor=3, mode="bilinear", align_corners=True),
            theirs.Upsample(scale_factor=3, mode="bilinear", align_corners=True),
            (1, 2, 3, 4),
        ),
        (ours.Sequential(ours.ReLU()), theirs.Sequential(theirs.ReLU()), (2, 3)),
    ]


@pytest.mark.oracle
def test_layers_compute_what_pytorch_s_do():
    torch = pytest.importorskip("torch")
    for ours, theirs, shape in pairs(torch):
        weights = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
        assert ours.load_state_dict(weights) == ([], [])
        x = image(*shape)
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        result = ours(x)
        result = result.data if isinstance(result, Tensor) else result
        assert result.shape == expected.shape, theirs
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5, err_msg=repr(theirs))


@pytest.mark.oracle
def test_representations_read_as_pytorch_s():
    torch = pytest.importorskip("torch")
    for ours, theirs, _ in pairs(torch):
        text = repr(theirs).replace("scale_factor=2.0", "scale_factor=2")
        assert repr(ours) == text.replace("scale_factor=3.0", "scale_factor=3")
    nested = nn.Sequential(("a", nn.Sequential(nn.ReLU(), nn.Flatten())), ("b", nn.Linear(2, 3)))
    same = torch.nn.Sequential(
        OrderedDict(
            a=torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten()), b=torch.nn.Linear(2, 3)
        )
    )
    assert repr(nested) == repr(same)
    assert repr(nn.Conv2d(1, 1, 1, relu=True)).endswith("stride=(1, 1), relu=True)")


@pytest.mark.oracle
def test_cross_entropy_loss():
    torch = pytest.importorskip("torch")
    scores = image(2, 4, 3, 3)
    labels = np.random.default_rng(0).integers(0, 4, (2, 3, 3))
    labels[0, 0] = 255
    options = {"ignore_index": 255, "reduction": "sum", "label_smoothing": 0.1}
    weight = np.array([1, 2, 0.5, 1], np.float32)
    loss = nn.CrossEntropyLoss(weight, **options)
    theirs = torch.nn.CrossEntropyLoss(torch.from_numpy(weight), **options)
    expected = theirs(torch.from_numpy(scores), torch.from_numpy(labels)).item()
    assert loss(scores, labels).item() == pytest.approx(expected, rel=1e-5)
    assert list(loss.state_dict()) == ["weight"]


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_names_the_channels_that_it_expects(layer):
    net = nn.Sequential(layer(3, 4, 3))
    image = np.zeros((5, 6, 3), np.float32)
    expected = r"^expected an input with in_channels=3 channels, "
    batched, one = r"\(N, 3, H, W\); got shape ", r"\(3, H, W\); got shape "
    last = r"Its channels seem to stand last: put them first with x\."
    cases = (
        (image[None], batched + rf"\(1, 5, 6, 3\)\. {last}transpose\(0, 3, 1, 2\)\.$"),
        (tinydilate.tensor(image), one + rf"\(5, 6, 3\)\. {last}permute\(2, 0, 1\)\.$"),
        (image[None, None, :, :, 0], batched + r"\(1, 1, 5, 6\)\. Change in_channels, or give"),
    )
    for wrong, text in cases:
        with pytest.raises(ShapeError, match=expected + text):
            net(wrong)
    assert net(image[None].transpose(0, 3, 1, 2)).shape[1] == 4
    assert net(tinydilate.tensor(image).permute(2, 0, 1)).shape[0] == 4


def test_a_forward_without_return_is_named():
    class Forgetful(nn.Module):
        def forward(self, x):
            x.relu()

    text = r"^expected Forgetful\.forward to return a tensor; got None\. End it with return\.$"
    with pytest.raises(ConfigError, match=text):
        nn.Sequential(nn.ReLU(), Forgetful())(tensor([1.0]))


def test_a_tensor_that_would_never_be_learnt_is_refused():
    class Scale(nn.Module):
        def __init__(self, scale):
            self.scale = scale

        def forward(self, x):
            return self.scale * x

    text = (
        r"^expected a Parameter for 'scale', which the module would learn; got a tensor that "
        r"requires grad, .* Write self\.scale = nn\.Parameter\(array\)\.$"
    )
    with pytest.raises(ConfigError, match=text):
        Scale(tensor([2.0], requires_grad=True))
    assert [*Scale(tensor([2.0])).parameters()] == []
    learnt = nn.Parameter(np.ones(1))
    assert Scale(2 * learnt).scale.requires_grad, "what was computed may be kept"
    assert len([*Scale(nn.Parameter(np.ones(1))).parameters()]) == 1


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ("cuda:1", DeviceError, "got 'cuda:1'. One card is used, by the name \"cuda\";"),
        ("tpu", DtypeError, "got 'tpu'. Write .to(\"cuda\") or .to(np.float64)."),
    ],
)
def test_a_module_says_where_it_can_go(target, error, text):
    with pytest.raises(error, match=re.escape(text)):
        nn.Linear(2, 2).to(target)

import pytest

from keras_deepseek.deploy.onnx_passes.fusions.fuse_gelu import fuse_gelu

WEIGHTS = """float half = {0.5}, float one = {1}, float by_root = {0.70710677},
    float root = {1.4142135},
    float three = {3}, float two = {2}, float cubic = {0.044715}, float factor = {0.7978846}"""
FORMS = {
    "TensorFlow": """half_x = Mul (half, x)  negative = Neg (x)  scaled = Mul (negative, by_root)
        erf = Erf (scaled)  sum = Sub (one, erf)  y = Mul (half_x, sum)""",
    "JAX": """half_x = Mul (x, half)  scaled = Mul (x, by_root)  erf = Erf (scaled)
        sum = Add (erf, one)  y = Mul (half_x, sum)""",
    "PyTorch": """scaled = Div (x, root)  erf = Erf (scaled)  sum = Add (erf, one)
        half_sum = Mul (half, sum)  y = Mul (x, half_sum)""",
    "tanh of a power": """half_x = Mul (half, x)  cube = Pow (x, three)  small = Mul (cubic, cube)
        inner = Add (x, small)  scaled = Mul (factor, inner)  tanh = Tanh (scaled)
        sum = Add (one, tanh)  y = Mul (half_x, sum)""",
    "tanh of products": """square = Mul (x, x)  cube = Mul (x, square)  small = Mul (cube, cubic)
        inner = Add (x, small)  scaled = Mul (inner, factor)  tanh = Tanh (scaled)
        sum = Add (tanh, one)  product = Mul (x, sum)  y = Mul (product, half)""",
}


@pytest.fixture
def batches(draw):
    return [draw(x=shape) for shape in ((1, 1, 4), (2, 3, 4), (7, 5, 4))]


@pytest.mark.parametrize("form", FORMS)
def test_it_is_one_operator(parse, check_pass, batches, form):
    model = parse(FORMS[form], weights=WEIGHTS, opset=20)
    assert check_pass(fuse_gelu, model, batches) == (1, {"Gelu": 1})
    (node,) = model.graph.node
    assert node.attribute[0].s == (b"tanh" if "tanh" in form else b"none")


@pytest.mark.parametrize("form", FORMS)
def test_below_opset_20_onnxruntime_makes_one_of_it(parse, check_pass, batches, form, tmp_path):
    import onnx
    import onnxruntime

    # Between two others: it makes no FastGelu of what is an output.
    nodes = f"x = Sin (before) {FORMS[form].replace('y =', 'z =')} y = Sin (z)"
    model = parse(nodes, "float[N,S,4] before", weights=WEIGHTS, opset=18)
    batches = [{"before": arrays["x"]} for arrays in batches]
    assert check_pass(fuse_gelu, model, batches)[0] == 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    kind = "FastGelu" if "tanh" in form else "Gelu"
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert [node.op_type for node in nodes] == ["Sin", kind, "Sin"]


CHANGES = {
    "another root": ("JAX", "by_root = {0.70710677}", "by_root = {0.6}"),
    "no half": ("JAX", "half = {0.5}", "half = {0.25}"),
    "not one": ("JAX", "one = {1}", "one = {2}"),
    "another sign": ("TensorFlow", "negative = Neg (x)", "negative = Abs (x)"),
    "another power": ("tanh of a power", "three = {3}", "three = {2}"),
    "another cubic factor": ("tanh of a power", "cubic = {0.044715}", "cubic = {0.05}"),
    "another factor": ("tanh of a power", "factor = {0.7978846}", "factor = {0.7}"),
    "another tensor inside": (
        "JAX",
        "scaled = Mul (x, by_root)",
        "z = Abs (x) scaled = Mul (z, by_root)",
    ),
    "another function": ("JAX", "erf = Erf (scaled)", "erf = Sin (scaled)"),
    "the complement of tanh": ("tanh of a power", "sum = Add (one, tanh)", "sum = Sub (one, tanh)"),
}


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(check_changed, batches, name, opset):
    form, *change = CHANGES[name]
    counts = check_changed(fuse_gelu, batches, FORMS[form], WEIGHTS, change, opset=opset)
    assert counts[0] == 0


@pytest.mark.parametrize("inner", ["half_x", "scaled", "erf", "sum"])
def test_with_another_user_of_an_inner_value_it_stays(parse, check_pass, batches, inner):
    outputs = "float[A,B,C] y, float[D,E,F] z"
    model = parse(f"{FORMS['JAX']} z = Abs ({inner})", outputs=outputs, weights=WEIGHTS, opset=20)
    assert check_pass(fuse_gelu, model, batches)[0] == 0

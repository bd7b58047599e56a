import pytest

from keras_deepseek.deploy.onnx_passes.roll_normalizations import roll_normalizations

WEIGHTS = "int64[1] columns = {-2}, int64[1] rows = {-1}, float epsilon = {0.01}"
POSITIVE = "start = Sigmoid (x)\n"


def write_rounds(num_steps, start="start", axes=("columns", "rows")):
    """Returns Sinkhorn's rounds as the three frameworks' exporters write them."""
    lines = [POSITIVE]
    for index in range(num_steps):
        end = "y" if index == num_steps - 1 else f"x{index}"
        lines.append(
            f"s{index} = ReduceSum ({start}, {axes[index % len(axes)]})\n"
            f"d{index} = Add (s{index}, epsilon)\n"
            f"{end} = Div ({start}, d{index})\n"
        )
        start = end
    return "".join(lines)


@pytest.fixture
def batches(draw):
    return [draw(x=shape) for shape in ((1, 1, 4), (2, 3, 4), (5, 2, 4))]


@pytest.mark.parametrize(("num_steps", "num_left"), [(39, 1), (40, 0), (6, 0)])
def test_rounds_are_a_loop(parse, check_pass, batches, num_steps, num_left):
    model = parse(write_rounds(num_steps), weights=WEIGHTS)
    num_loops, counts = check_pass(roll_normalizations, model, batches, tolerance=0)
    assert num_loops == 1
    assert (counts["Loop"], counts["ReduceSum"], counts["Div"]) == (1, num_left, num_left)


def test_rounds_of_one_step_and_constants_of_several_names(check_changed, batches):
    nodes = write_rounds(4, axes=("rows",)).replace("Add (s1, epsilon)", "Add (s1, same)")
    weights = f"{WEIGHTS}, float same = {{0.01}}"
    assert check_changed(roll_normalizations, batches, nodes, weights) == (
        1,
        {"Sigmoid": 1, "Loop": 1},
    )


def test_two_rows_of_rounds_are_two_loops(parse, check_pass, batches):
    first = write_rounds(6).replace("y = Div", "z = Div")
    second = "".join(
        line.replace("start", "z") + "\n"
        for line in write_rounds(6).replace(POSITIVE, "").splitlines()
    )
    for index in range(6):
        for kind in "sdx":
            second = second.replace(f"{kind}{index}", f"{kind}_of_second_{index}")
    model = parse(f"{first} other = Sqrt (z) {second.replace('(z', '(other')}", weights=WEIGHTS)
    num_loops, counts = check_pass(roll_normalizations, model, batches, tolerance=0)
    assert num_loops == counts["Loop"] == 2


NEAR_MISSES = {
    "two rounds": (write_rounds(4),),
    "another constant in each": (
        write_rounds(6),
        *(
            (f"d{index} = Add (s{index}, epsilon)", f"d{index} = Add (s{index}, e{index})")
            for index in range(6)
        ),
    ),
    "a divisor of what was before": (
        write_rounds(6),
        *((f"ReduceSum (x{index}", "ReduceSum (start") for index in range(5)),
    ),
    "no sum": (
        write_rounds(6),
        *(
            (f"s{i} = ReduceSum ({x}, {('columns', 'rows')[i % 2]})", f"s{i} = Sqrt ({x})")
            for i, x in enumerate(("start", "x0", "x1", "x2", "x3", "x4"))
        ),
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(check_changed, batches, name):
    nodes, *changes = NEAR_MISSES[name]
    further = "".join(f", float e{index} = {{{index + 1}}}" for index in range(6))
    counts = check_changed(roll_normalizations, batches, nodes, WEIGHTS + further, *changes)
    assert counts[0] == counts[1]["Loop"] == 0


def test_what_is_used_within_keeps_its_name(parse, check_pass, batches):
    nodes = write_rounds(12).replace("y = Div", "z = Div") + "y = Add (x7, z)"
    num_loops, counts = check_pass(
        roll_normalizations, parse(nodes, weights=WEIGHTS), batches, tolerance=0
    )
    assert num_loops == 1  # Of the first eight steps; the four behind it are two rounds.
    assert counts["Div"] == 4

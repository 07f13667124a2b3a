"""The parts of a model count what it has; neighbours are by cosine."""

import numpy as np
import pytest

from npgpt.explaining.anatomy import neighbours, parts
from tests.models import FAMILY, random_model


@pytest.mark.parametrize("fields", FAMILY.values(), ids=FAMILY)
def test_parts_add_up_to_the_model(fields):
    model = random_model(**fields)
    found = parts(model.config)
    assert sum(part.parameters for part in found) == model.num_params
    for part in found:
        same = [
            w for name, w in model.params.items() if name.replace(name.split(".")[1], "*", 1) == part.name
        ]
        same = same if part.name.startswith("h.") else [model.params[part.name]]
        assert (len(same), same[0].shape) == (part.times, part.shape)


def test_neighbours_are_the_nearest_by_angle():
    model, ids = random_model(), np.array([3, 200, 3])
    wte = model.params["wte.weight"].astype(np.float64)
    cosines = wte @ wte[200] / np.linalg.norm(wte, axis=1) / np.linalg.norm(wte[200])
    nearest, found = neighbours(model, ids)
    order = np.argsort(-cosines)[1:4]
    assert (nearest[1] == order).all() and (nearest[0] == nearest[2]).all()
    np.testing.assert_allclose(found[1], cosines[order], atol=1e-6)

"""The Market-1501 protocol against a loop over pairs of images."""

import numpy as np
import pytest

from dcal_hf.metrics import RetrievalProtocol


def loop_roles(query, ids, cameras=None, images=None):
    """The matches of a query, the items ignored for it besides junk, and the ranked items."""
    roles = {"matches": [], "ignored": [], "counted": []}
    for item, identity in enumerate(ids[1]):
        own_camera = cameras is not None and identity == ids[0][query] and cameras[1][item] == cameras[0][query]
        own_image = images is not None and images[1][item] == images[0][query]
        if identity == -1:
            continue
        if own_camera or own_image:
            roles["ignored"].append(item)
            continue
        roles["counted"].append(item)
        if identity == ids[0][query]:
            roles["matches"].append(item)
    return roles


@pytest.mark.parametrize("names", [(), ("cameras",), ("images",), ("cameras", "images")])
@pytest.mark.parametrize("seed", range(3))
def test_equals_loop_over_items(seed, names):
    generator = np.random.default_rng(seed)
    ids = generator.integers(-1, 9, 40), generator.integers(-1, 8, 120)
    columns = {
        "cameras": tuple([f"camera {number}" for number in generator.integers(0, 3, n)] for n in (40, 120)),
        "images": tuple(generator.integers(0, 50, n) for n in (40, 120)),
    }
    columns = {name: columns[name] for name in names}
    sides = [{f"{side}_{name}": both[place] for name, both in columns.items()}
             for place, side in enumerate(("query", "gallery"))]
    protocol = RetrievalProtocol(*ids, **sides[0], **sides[1])
    assert protocol.junk.tolist() == [item for item, identity in enumerate(ids[1]) if identity == -1] != []
    roles = [loop_roles(query, ids, **columns) for query in range(40)]
    assert any(role["ignored"] for role in roles) == bool(names)
    for query, expected in enumerate(roles):
        assert {name: getattr(protocol, name)(query).tolist() for name in expected} == expected


def test_an_empty_side_has_no_matches():
    assert RetrievalProtocol([], [1, 2], [], [1, 1]).kept.tolist() == [0, 1]
    assert RetrievalProtocol([1], [], ["a"], []).matches(0).tolist() == []


@pytest.mark.parametrize("name", ["identities", "cameras", "images"])
def test_text_is_not_compared_with_numbers(name):
    """NumPy would: as text, in an order in which 10 comes before 9, and text is never the same camera as a number."""
    columns = {"identities": ([9, 10], [9, 10, 9]), "cameras": ([1, 1], [1, 2, 2]), "images": ([0, 1], [2, 3, 4])}
    columns[name] = (list(map(str, columns[name][0])), columns[name][1])
    (query_ids, gallery_ids), (query_cameras, gallery_cameras), (query_images, gallery_images) = columns.values()
    with pytest.raises(ValueError, match=f"The {name} must be text on both sides, or numbers .*, got <U. and int64"):
        RetrievalProtocol(
            query_ids, gallery_ids, query_cameras, gallery_cameras,
            query_images=query_images, gallery_images=gallery_images,
        )


def test_signed_and_unsigned_identities_are_compared_exactly():
    """As float64, 2**60 and 2**60 + 1 are equal."""
    signed, unsigned = np.array([2**60 + 1, 2**60, 5, -1]), np.array([2**60 + 1, 2**60, 5], np.uint64)
    protocol = RetrievalProtocol(unsigned, signed)
    assert [protocol.matches(query).tolist() for query in range(3)] == [[0], [1], [2]] and protocol.junk == [3]
    protocol = RetrievalProtocol(signed, unsigned)
    assert [protocol.matches(query).tolist() for query in range(4)] == [[0], [1], [2], []]
    with pytest.raises(ValueError, match="identities are signed on one .* and 9223372036854775808 is too large for"):
        RetrievalProtocol(signed, np.array([2**63], "u8"))

"""The table of sites is the one place that says what a site is."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import rdrop
from rdrop.dropout import KINDS
from rdrop.keys import STREAMS
from rdrop.noise import KINDS_BY_NAME
from rdrop.sites import SITES

LIBRARY = Path(rdrop.__file__).parent
TENTH = """

SITES["carry"] = NoiseSite(
    "recurrent",
    symbol="k",
    arrow="→ the carry",
    kinds=("zoneout", "bernoulli"),
    place=(0.25, 0.5),
    text="is a site of a test.",
    per_gate=True,
)
"""
USE = """
import jax
import rdrop
from rdrop import Bernoulli, Dropout, Masks, Site, Zoneout, dropout, presets, sites

assert len(sites.SITES) == 10
site = Site(gates=2, units=3)
noise = Dropout(carry=Bernoulli(0.5, gates="each"), inputs=Bernoulli(0.5))
keys = rdrop.stream_keys(jax.random.key(0))
masks = rdrop.draw(noise, keys, {"inputs": site, "carry": site}, 4)
assert masks.carry.shape == (4, 2, 3)
assert (masks.carry[:, :1] != masks.inputs).any()
assert jax.tree.leaves(noise) == [0.5, 0.5]
assert noise.sites()[-1][0] == "carry"
assert noise.expected() == Masks()
shared = keys.sharing(rdrop.stream_keys(jax.random.key(1)), "carry")
other = rdrop.draw(noise, shared, {"inputs": site, "carry": site}, 4)
assert (other.carry != masks.carry).any()
assert (other.inputs == masks.inputs).all()
assert "carry: is a site of a test." in Dropout.__doc__
assert "carry: is a site of a test." in Masks.__doc__
try:
    Dropout(carry=0.5)
except TypeError as error:
    assert "Site `carry` takes Zoneout(rate) or Bernoulli(rate), got 0.5." in str(error)
try:
    dropout.resolve(Masks(carry=masks.carry), None, {"inputs": site}, 4)
except ValueError as error:
    assert "Site `carry` does not exist in this cell" in str(error)
presets.EXAMPLES["mine"] = lambda: noise
(row,) = [row for row in presets.rows() if "carry" in row.site]
assert (row.arrow, row.gates) == ("→ the carry", "each")
try:
    from rdrop import plot
except ImportError:
    pass
else:
    texts = [text.get_text() for text in plot.masks(masks, time=1).texts]
    assert "k" in texts
print("done")
"""


def test_a_tenth_site_is_one_edit_of_the_table(tmp_path):
    copy = shutil.copytree(LIBRARY, tmp_path / "rdrop")
    with (copy / "sites.py").open("a") as file:
        file.write(TENTH)
    run = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout == "done\n", run.stderr


def test_every_site_has_a_stream_and_kinds():
    assert list(STREAMS) == list(KINDS) == list(SITES)
    for name, site in SITES.items():
        assert STREAMS[name] == site.stream
        assert KINDS[name] == tuple(KINDS_BY_NAME[kind] for kind in site.kinds)
        assert site.on_weights == (site.kinds == ("dropconnect", "weight_noise"))


@pytest.mark.parametrize("kind", [rdrop.Dropout, rdrop.Masks])
def test_fields_are_the_sites_in_the_order_of_the_table(kind):
    node = kind(**dict.fromkeys(reversed(SITES)))
    assert list(vars(node)) == list(SITES)
    paths = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is None)
    assert [path[0].name for path, _ in paths] == list(SITES)
    for name, site in SITES.items():
        assert f"    {name}: {site.text.split(' ')[0]}" in kind.__doc__

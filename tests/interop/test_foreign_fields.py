"""Configurations as other programs write them: either name of a size, defaults for what is absent,
and every field of a wrong type named.
"""

import copy

import pytest

from tests.interop.test_interop import paper_fields, read
from xlstm_jax.errors import UserError
from xlstm_jax.interop import large, paper
from xlstm_jax.interop.folders import open_source

# config.json of a 7B checkpoint, as public transcriptions give it
PUBLIC_7B = {
    "embedding_dim": 4096,
    "num_blocks": 32,
    "num_heads": 8,
    "vocab_size": 50304,
    "qk_dim_factor": 0.5,
    "ffn_proj_factor": 2.667,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "norm_eps": 1e-6,
    "eps": 1e-6,
    "tie_word_embeddings": False,
}
WRONG = (None, "x", -1, [], {}, True, float("nan"), float("inf"))


def test_the_public_7b_is_read_and_so_is_a_folder_that_leaves_all_to_the_defaults():
    config = large.import_config(PUBLIC_7B)
    assert (config.dim, config.num_blocks, config.mlstm_7b.num_heads) == (4096, 32, 8)
    assert (config.norm_eps, config.mlstm_7b.gate_soft_cap) == (1e-6, 15.0)
    assert config.mlp.factor == 2.667
    assert large.import_config({"model_type": "xlstm"}) == config


@pytest.mark.parametrize(
    "names", [("hidden_size",), ("embedding_dim",), ("hidden_size", "embedding_dim")], ids="+".join
)
def test_a_size_has_either_name_or_both(names):
    fields = {name: value for name, value in PUBLIC_7B.items() if name != "embedding_dim"}
    assert large.import_config(fields | dict.fromkeys(names, 2048)).dim == 2048
    absent = {"hidden_size": None, "embedding_dim": None} | dict.fromkeys(names, 2048)
    assert large.import_config(fields | absent).dim == 2048


def test_two_names_with_two_values_are_refused():
    with pytest.raises(UserError, match="num_blocks is 32 and num_hidden_layers is 30; they must"):
        large.import_config(PUBLIC_7B | {"num_hidden_layers": 30})


def test_what_yaml_takes_for_text_is_a_number():
    fields = large.export_pypi_config(read("large")[0])
    assert large.import_pypi_config(fields | {"eps": "1e-6"}).mlstm_7b.eps == 1e-6
    del fields["ffn_proj_factor"], fields["gate_soft_cap"]
    assert large.import_pypi_config(fields).mlp.factor == 2.6667


def test_slstm_blocks_everywhere_may_be_called_all():
    fields = paper_fields(read("paper")[0])
    config = paper.import_config(fields | {"slstm_at": "all", "mlstm_block": None})
    assert config.layout == config.num_blocks * (("slstm", "mlp"),)


def paths(fields: dict, *above: str):
    """Every field, also inside others."""
    for name, value in fields.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from paths(value, *above, name)


def test_a_field_of_a_wrong_type_is_refused_by_name():
    """All fields that are read, each with values that it can't have: no other exception."""
    readers = (
        (large.import_config, PUBLIC_7B),
        (large.import_pypi_config, large.export_pypi_config(read("large")[0])),
        (paper.import_config, paper_fields(read("paper")[0])),
    )
    refused = 0
    for import_config, fields in readers:
        for path in paths(fields):
            for value in WRONG:
                changed = copy.deepcopy(dict(fields))
                inside = changed
                for name in path[:-1]:
                    inside = inside[name]
                inside[path[-1]] = value
                try:
                    import_config(changed)
                except UserError as error:
                    assert "can't be converted" in str(error)
                    refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[1, 2]"),
        ("config.json", b"{no json"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b'{"a":' * 100_000),
        ("config.json", b'{"model_type": "bert"}'),
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"when: 2020-99-99"),
        ("config.yaml", b""),
    ],
)
def test_a_configuration_that_is_none_is_refused_with_its_path(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        open_source(str(tmp_path))


def test_a_model_that_can_not_be_made_is_refused_when_it_is_read():
    with pytest.raises(UserError, match="num_heads"):
        large.import_config(PUBLIC_7B | {"num_heads": 7})

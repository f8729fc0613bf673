"""Small models of transformers (Llama, GPT-2, Mamba, RWKV-4) with random values in every
parameter.
"""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from benchmarks.originals import randomize

# By name: the class of the configuration, that of the model, fields.
MODELS = {
    "llama": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 29,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        {"vocab_size": 29, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 48},
    ),
    "mamba": (
        MambaConfig,
        MambaForCausalLM,
        {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 5},
    ),
    "rwkv4": (
        RwkvConfig,
        RwkvForCausalLM,
        {
            "vocab_size": 29,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "context_length": 48,
            # else the first evaluation divides the weights
            "rescale_every": 0,
        },
    ),
}


def transformers_model(name: str, seed: int = 3, **changes) -> torch.nn.Module:
    """The model in evaluation mode, its fields changed."""
    config, model, fields = MODELS[name]
    torch.manual_seed(seed)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    made = model(config(**ids | fields | changes)).eval()
    randomize(made, seed)
    return made

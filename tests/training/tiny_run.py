"""The smallest run with both kinds of blocks: a config file for tests. Its data path is given by
each test.
"""

from xlstm_jax.config import default_config_dict


def get_config():
    config = default_config_dict()
    config.model.dim = 16
    config.model.num_blocks = 2
    config.model.blocks = "mlstm,slstm+mlp"
    config.model.mlstm.num_heads = 2
    config.model.slstm.num_heads = 2
    config.data.context_length = 16
    config.data.batch_size = 4
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 2
    config.train.steps = 6
    config.mesh.data = 1
    config.log.every = 1
    config.log.tensorboard = False
    config.eval.every = 100
    config.eval.batch_size = 4
    config.eval.sample_tokens = 0
    config.checkpoint.every = 100
    return config

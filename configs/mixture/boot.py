"""BOOT on four Gaussians in the plane, whose diffusion model is known in closed form.

    python -m experiments.run --config=configs/mixture/boot.py --workdir=runs/boot

No data and no teacher to train; an MLP of 3 x 128 learns to jump to the end of a trajectory in one
call, from noise alone. The report compares its samples with 100 steps of DDIM from the same noise,
and with a student that regresses on trajectories of 16.
"""

from experiments import generation_configuration


def get_config():
    config = generation_configuration.defaults()
    config.student.training.update(
        steps=4000, batch_size=256, optimizer="adam", learning_rate=1e-3, schedule="cosine"
    )
    config.checkpoint_every = 2000
    config.validate_every = 500
    return config

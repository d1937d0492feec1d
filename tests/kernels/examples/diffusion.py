"""Examples of noise schedules, diffusion, and distillation into few steps."""

import jax.numpy as jnp
import numpy as np

from kdjax.losses import (
    bootstrapping,
    diffusion,
    diffusion_steps,
    noise_schedules,
    score_matching,
    step_distillation,
)
from kernels.examples.example import Example, Refused, draw, normal

BATCH, SHAPE = 3, (3, 2, 2)


def levels(low=0.2, high=0.8):
    return lambda generator: generator.uniform(low, high, BATCH).astype(np.float32)


def ones(*shape):
    return np.ones(shape, np.float32)


def denoiser(noisy, sigma):
    sigma = sigma.reshape(sigma.shape + (1,) * (noisy.ndim - sigma.ndim))
    return jnp.tanh(noisy) / (1 + sigma**2)


def elementwise(kernel, *arguments, refused=(), extreme=(), **options):
    """An example on levels [batch]."""
    return Example(
        kernel,
        draw(**dict.fromkeys(arguments, levels())),
        options,
        differentiated=arguments,
        extreme=extreme,
        batched=arguments,
        refused=(
            Refused(
                {arguments[0]: np.ones(BATCH, np.int32)},
                f"{arguments[0]} must be floating-point, got dtype int32",
                TypeError,
            ),
            *refused,
        ),
    )


def out_of_range(name, bounds="lie in \\[0, 1\\]", value=1.5):
    return Refused({name: np.full(BATCH, value, np.float32)}, f"{name} must {bounds}, got {value}")


def aligned(kernel, arrays, of_levels, above_zero=(), **options):
    """An example on arrays of one shape and levels [batch], all differentiated."""
    first = arrays[0]
    refused = [
        Refused({of_levels[0]: ones(2)}, f"{of_levels[0]} must have the leading axes of {first}")
    ]
    refused += [
        Refused({name: np.zeros(BATCH, np.float32)}, f"{name} must be > 0, got 0")
        for name in above_zero
    ]
    if len(arrays) > 1:
        message = f"{arrays[1]} must be shaped \\[...\\] with ... = \\(3, 2, 2\\) as in {first}"
        refused.append(Refused({arrays[1]: ones(3, 2)}, message))
    return Example(
        kernel,
        draw(**dict.fromkeys(arrays, normal(*SHAPE)), **dict.fromkeys(of_levels, levels())),
        options,
        differentiated=(*arrays, *of_levels),
        extreme=arrays,
        batched=(*arrays, *of_levels),
        refused=tuple(refused),
    )


LEVELS = ("alpha", "sigma")
NEXT = (*LEVELS, "next_alpha", "next_sigma")
NOT_FINITE = "must be finite, got nan"

SCHEDULES = {
    "cosine_schedule": elementwise(
        noise_schedules.cosine_schedule, "times", refused=(out_of_range("times"),)
    ),
    "linear_schedule": elementwise(
        noise_schedules.linear_schedule,
        "times",
        refused=(
            out_of_range("times", value=-0.5),
            Refused({"beta_min": -1.0}, "beta_min must be finite and >= 0, got -1.0"),
        ),
    ),
    "flow_schedule": elementwise(
        noise_schedules.flow_schedule, "times", refused=(out_of_range("times"),)
    )._replace(differentiated=()),  # of the sum of both, which is 1, there is no gradient
    "exploding_schedule": elementwise(
        noise_schedules.exploding_schedule,
        "sigma",
        refused=(out_of_range("sigma", "be >= 0", -0.5),),
    ),
    "karras_sigmas": elementwise(
        noise_schedules.karras_sigmas,
        "fractions",
        refused=(
            out_of_range("fractions"),
            Refused({"rho": 0.0}, "rho must be finite and > 0, got 0"),
            Refused({"sigma_min": 0.0}, "sigma_min must be finite and > 0, got 0"),
        ),
    ),
    "shift_sigmas": elementwise(
        noise_schedules.shift_sigmas,
        "sigma",
        shift=5.0,
        refused=(
            out_of_range("sigma"),
            Refused({"shift": 0.0}, "shift must be finite and > 0, got 0"),
        ),
    ),
    "log_snr": elementwise(
        noise_schedules.log_snr,
        *LEVELS,
        refused=(
            out_of_range("sigma", "be > 0", 0.0),
            Refused({"sigma": ones(2)}, "sigma must be shaped \\[...\\] with ... = \\(3,\\)"),
        ),
    ),
    "bell_weights": Example(
        noise_schedules.bell_weights,
        draw(times=np.arange(6, dtype=np.float32)),
        differentiated=("times",),
        refused=(Refused({"times": ones(1)}, "times must be shaped .* with times >= 2"),),
    ),
    "karras_scalings": elementwise(
        noise_schedules.karras_scalings,
        "sigma",
        sigma_min=0.002,
        refused=(
            out_of_range("sigma", "be >= 0", -0.5),
            Refused({"sigma_data": 0.0}, "sigma_data must be finite and > 0, got 0"),
        ),
    ),
    **{
        f"loss_weight: {weighting}": Example(
            noise_schedules.loss_weight,
            draw(alpha=levels(0.6, 0.9), sigma=levels(0.1, 0.5)),
            {"weighting": weighting},
            differentiated=() if weighting == "uniform" else LEVELS,
            batched=LEVELS,
            refused=(
                Refused({"weighting": "none"}, "weighting must be one of 'uniform', .*'none'"),
                out_of_range("sigma", "be > 0", 0.0),
            ),
        )
        for weighting in noise_schedules.WEIGHTINGS
    },
}

PARAMETERISATIONS = {
    "add_noise": aligned(diffusion.add_noise, ("clean", "noise"), LEVELS),
    "clean_from_noise": aligned(
        diffusion.clean_from_noise, ("noisy", "noise"), LEVELS, above_zero=("alpha",)
    ),
    "noise_from_clean": aligned(
        diffusion.noise_from_clean, ("noisy", "clean"), LEVELS, above_zero=("sigma",)
    ),
    "velocity": aligned(diffusion.velocity, ("clean", "noise"), LEVELS),
    "clean_from_velocity": aligned(diffusion.clean_from_velocity, ("noisy", "velocity"), LEVELS),
    "noise_from_velocity": aligned(diffusion.noise_from_velocity, ("noisy", "velocity"), LEVELS),
    "flow_velocity": Example(
        diffusion.flow_velocity,
        draw(clean=normal(*SHAPE), noise=normal(*SHAPE)),
        differentiated=("clean", "noise"),
        extreme=("clean", "noise"),
        batched=("clean", "noise"),
        refused=(Refused({"noise": ones(3, 2)}, "noise must be shaped"),),
    ),
    "clean_from_flow": aligned(diffusion.clean_from_flow, ("noisy", "velocity"), LEVELS),
    "ddim_step": aligned(
        diffusion_steps.ddim_step, ("noisy", "clean"), NEXT, above_zero=("sigma",)
    ),
    "ddim_inverse": Example(
        diffusion_steps.ddim_inverse,
        draw(
            noisy=normal(*SHAPE),
            next_noisy=normal(*SHAPE),
            alpha=levels(0.1, 0.3),
            sigma=levels(0.8, 0.9),
            next_alpha=levels(0.6, 0.9),
            next_sigma=levels(0.2, 0.4),
        ),
        differentiated=("noisy", "next_noisy", *NEXT),
        extreme=("noisy", "next_noisy"),
        batched=("noisy", "next_noisy", *NEXT),
        refused=(
            out_of_range("sigma", "be > 0", 0.0),
            Refused({"next_sigma": ones(2)}, "next_sigma must have the leading axes of noisy"),
        ),
    ),
    "ddim_sample": Example(
        diffusion_steps.ddim_sample,
        draw(noise=normal(*SHAPE), times=np.array([0.9, 0.5, 0.1], np.float32)),
        {"denoiser": denoiser},
        differentiated=("noise", "times"),
        extreme=("noise",),
        batched=("noise",),
        refused=(
            Refused({"times": np.array([0.1, 0.5], np.float32)}, "times must fall, got"),
            Refused({"times": ones(1)}, "times must be shaped \\[times>=2\\]"),
            Refused({"times": np.array([1.5, 0.5], np.float32)}, "times must lie in \\[0, 1\\]"),
            Refused({"noise": ones()}, "noise must be shaped \\[batch, ...\\], got shape"),
        ),
    ),
    "euler_step": aligned(diffusion_steps.euler_step, ("noisy", "slope"), ("time", "next_time")),
    "heun_step": aligned(
        diffusion_steps.heun_step,
        ("noisy",),
        ("sigma", "next_sigma"),
        above_zero=("sigma",),
        denoiser=denoiser,
    ),
    "guided": Example(
        diffusion_steps.guided,
        draw(unconditional=normal(*SHAPE), conditional=normal(*SHAPE)),
        {"scale": 3.0},
        differentiated=("unconditional", "conditional"),
        extreme=("unconditional", "conditional"),
        batched=("unconditional", "conditional"),
        refused=(
            Refused({"scale": np.nan}, f"scale {NOT_FINITE}"),
            Refused({"conditional": ones(3, 2)}, "conditional must be shaped"),
        ),
    ),
    "guided_by_two": Example(
        diffusion_steps.guided_by_two,
        draw(**dict.fromkeys(("unconditional", "first_only", "both"), normal(*SHAPE))),
        {"first_scale": 3.0, "second_scale": 2.0},
        differentiated=("unconditional", "first_only", "both"),
        extreme=("unconditional", "first_only", "both"),
        batched=("unconditional", "first_only", "both"),
        refused=(
            Refused({"second_scale": np.nan}, f"second_scale {NOT_FINITE}"),
            Refused({"both": ones(3, 2)}, "both must be shaped"),
        ),
    ),
}

MASK = np.ones(SHAPE, bool)
MASK[0, 1] = MASK[1] = False


def of_examples(kernel, *arguments, differentiated, where=True, refused=(), **options):
    """An example on arrays of one shape [batch, ...], with a mask."""
    masked = {"where": MASK} if where else {}
    other = Refused(
        {arguments[-1]: ones(3, 2)},
        f"{arguments[-1]} must be shaped .* as in {arguments[0]}, got shape \\(3, 2\\)",
    )
    bad_mask = (
        Refused({"where": np.ones(3, bool)}, "where must have the shape \\(3, 2, 2\\)"),
        Refused({"where": ones(*SHAPE)}, "where must be boolean", TypeError),
    )
    return Example(
        kernel,
        draw(**dict.fromkeys(arguments, normal(*SHAPE)), **masked),
        options,
        differentiated=differentiated,
        stopped=tuple(set(arguments) - set(differentiated)),
        extreme=arguments,
        batched=(*arguments, *masked),
        masked=dict.fromkeys(arguments, (0, 1)) if where else {},
        refused=(other, *(bad_mask if where else ()), *refused),
        sloped=False,  # a target is made of the student's own data, and stopped
    )


def bootstrapped(kernel, *arrays, refused=(), **options):
    """A target of BOOT, which has no gradient at all."""
    arguments = (*arrays, "times", "next_times")
    return Example(
        kernel,
        draw(
            **dict.fromkeys(arrays, normal(*SHAPE)),
            times=levels(0.5, 0.9),
            next_times=levels(0.1, 0.4),
        ),
        options,
        stopped=arguments,
        extreme=arrays,
        batched=arguments,
        refused=(
            Refused(
                {"next_times": ones(BATCH)}, "next_times must be (at most|less than) times, got 1"
            ),
            Refused({"next_times": ones(2)}, "next_times must have the shape of times \\(3,\\)"),
            Refused({"times": ones(BATCH)}, "alpha\\(times\\) must be > 0, got 0.0"),
            Refused({"times": 2 * ones(BATCH)}, "times must lie in \\[0, 1\\], got 2.0"),
            *refused,
        ),
    )


BOOTSTRAPPING = {
    "boot_target_exact": bootstrapped(bootstrapping.boot_target_exact, "signal", "clean"),
    "boot_target_euler": bootstrapped(bootstrapping.boot_target_euler, "signal", "clean"),
    "boot_target_heun": bootstrapped(
        bootstrapping.boot_target_heun,
        "signal",
        "noise",
        teacher=denoiser,
        refused=(
            Refused({"next_times": 0 * ones(BATCH)}, "sigma\\(next_times\\) must be > 0, got 0.0"),
        ),
    ),
    "boot_weight": bootstrapped(
        bootstrapping.boot_weight,
        weighting="inverse_squared_step",
        refused=(
            Refused({"weighting": "step"}, "weighting must be one of"),
            Refused(
                dict.fromkeys(("times", "next_times"), 0.5 * ones(BATCH)),
                "next_times must be less than times, got 0.5 for 0.5",
            ),
        ),
    ),
}

BAD_WEIGHT = Refused({"weight": ones(2)}, "weight must be a scalar or shaped .* got \\(2,\\)")
SCORES = ("student_data", "critic_prediction", "teacher_prediction")
CONSISTENCY = {"student": denoiser, "target": lambda noisy, sigma: noisy / 2}

STEP_DISTILLATION = {
    "target_regression": of_examples(
        step_distillation.target_regression,
        "student_prediction",
        "teacher_target",
        differentiated=("student_prediction",),
        weight=np.array([1.0, 2.0, 0.5], np.float32)[:1].reshape(()),
        refused=(BAD_WEIGHT,),
    )._replace(sloped=True),
    "progressive_target": Example(
        step_distillation.progressive_target,
        draw(
            noisy=normal(*SHAPE),
            times=levels(0.6, 0.9),
            middle_times=levels(0.4, 0.5),
            end_times=levels(0.1, 0.3),
        ),
        {"teacher": denoiser},
        stopped=("noisy", "times", "middle_times", "end_times"),
        extreme=("noisy",),
        batched=("noisy", "times", "middle_times", "end_times"),
        refused=(
            Refused({"end_times": ones(2)}, "end_times must be shaped .* with batch = 3 as in"),
            Refused({"times": ones(BATCH) * 0}, "sigma must be > 0, got 0"),
        ),
    ),
    "consistency_distillation": Example(
        step_distillation.consistency_distillation,
        draw(noisy=normal(*SHAPE), sigma=levels(1.0, 2.0), next_sigma=levels(0.1, 0.5)),
        {**CONSISTENCY, "teacher": lambda noisy, sigma: jnp.sin(noisy)},
        differentiated=("noisy", "sigma"),
        stopped=("next_sigma",),
        extreme=("noisy",),
        batched=("noisy", "sigma", "next_sigma"),
        refused=(
            BAD_WEIGHT,
            Refused({"sigma": ones(2)}, "sigma must be shaped .* with batch = 3 as in noisy"),
            Refused({"sigma": ones(BATCH) * 0}, "sigma must be > 0, got 0"),
        ),
        sloped=False,  # the target moves with the noisy data, and is stopped
    ),
    "consistency_training": Example(
        step_distillation.consistency_training,
        draw(
            clean=normal(*SHAPE),
            noise=normal(*SHAPE),
            sigma=levels(1.0, 2.0),
            next_sigma=levels(0.1, 0.5),
        ),
        CONSISTENCY,
        differentiated=("clean", "noise", "sigma"),
        stopped=("next_sigma",),
        extreme=("clean", "noise"),
        batched=("clean", "noise", "sigma", "next_sigma"),
        refused=(
            BAD_WEIGHT,
            Refused({"noise": ones(3, 2)}, "noise must be shaped .* as in clean"),
        ),
        sloped=False,  # the target moves with the data, and is stopped
    ),
    "consistency_schedule": Example(
        step_distillation.consistency_schedule,
        draw(step=np.array(7)),
        {"total_steps": 100},
        refused=(
            Refused({"total_steps": 0}, "total_steps must be >= 1, got 0"),
            Refused({"start_levels": 1}, "start_levels must be >= 2, got 1"),
            Refused({"start_decay": 0.0}, "start_decay must be finite and > 0, got 0"),
            Refused({"step": np.array(0.5)}, "step must be integers", TypeError),
        ),
    ),
    "gradient_surrogate": of_examples(
        score_matching.gradient_surrogate,
        "student_data",
        "gradient",
        differentiated=("student_data",),
    ),
    "dmd_gradient": of_examples(score_matching.dmd_gradient, *SCORES, differentiated=()),
    "dmd": of_examples(score_matching.dmd, *SCORES, differentiated=("student_data",)),
    "score_distillation": of_examples(
        score_matching.score_distillation,
        "student_data",
        "critic_noise",
        "teacher_noise",
        differentiated=("student_data",),
        weight=0.5,
        refused=(BAD_WEIGHT,),
    ),
    "sid": of_examples(
        score_matching.sid,
        "student_data",
        "fake_prediction",
        "real_prediction",
        differentiated=("student_data", "fake_prediction", "real_prediction"),
        refused=(Refused({"alpha": np.nan}, f"alpha {NOT_FINITE}"),),
    ),
    "adversarial_generator": Example(
        score_matching.adversarial_generator,
        draw(fake_logits=normal(4, 2)),
        differentiated=("fake_logits",),
        extreme=("fake_logits",),
        batched=("fake_logits",),
        refused=(
            Refused({"fake_logits": np.ones(3, int)}, "fake_logits must be a float", TypeError),
        ),
    ),
    "adversarial_critic": Example(
        score_matching.adversarial_critic,
        draw(real_logits=normal(4, 2), fake_logits=normal(4, 2)),
        differentiated=("real_logits", "fake_logits"),
        extreme=("real_logits", "fake_logits"),
        batched=("real_logits", "fake_logits"),
        refused=(Refused({"fake_logits": ones(3)}, "fake_logits must be shaped"),),
    ),
}

EXAMPLES = {**SCHEDULES, **PARAMETERISATIONS, **BOOTSTRAPPING, **STEP_DISTILLATION}

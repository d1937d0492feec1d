"""The goldens of diffusion, of distillation into few steps, and of the matching of scores."""

import jax
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
from kernels.goldens.support import loss_and_gradients


def diffusion_basics(case):
    times, next_times = case["t"], case["s"]
    start = noise_schedules.cosine_schedule(times)
    end = noise_schedules.cosine_schedule(next_times)
    middle_times = (times + next_times) / 2
    middle = noise_schedules.cosine_schedule(middle_times)
    clean, noise, predicted = case["x0"], case["eps"], case["x_pred"]
    noisy = diffusion.add_noise(clean, noise, *start)
    velocity = diffusion.velocity(clean, noise, *start)
    halfway = diffusion_steps.ddim_step(noisy, predicted, *start, *middle)

    predictions = iter([predicted, case["x_pred_mid"]])
    return {
        "alpha_t": start[0],
        "sigma_t": start[1],
        "z_t": noisy,
        "v": velocity,
        "x0_from_v": diffusion.clean_from_velocity(noisy, velocity, *start),
        "eps_from_v": diffusion.noise_from_velocity(noisy, velocity, *start),
        "eps_from_x": diffusion.noise_from_clean(noisy, predicted, *start),
        "ddim_next": diffusion_steps.ddim_step(noisy, predicted, *start, *end),
        "z_mid": halfway,
        "z_final": diffusion_steps.ddim_step(halfway, case["x_pred_mid"], *middle, *end),
        "pd_target": step_distillation.progressive_target(
            noisy, times, middle_times, next_times, teacher=lambda *_: next(predictions)
        ),
        "snr": noise_schedules.loss_weight(*start, weighting="snr"),
        "pd_weight_truncated": noise_schedules.loss_weight(*start),
        "pd_weight_snr1": noise_schedules.loss_weight(*start, weighting="snr_plus_one"),
        "log_snr": noise_schedules.log_snr(*start),
    }


def confirmed(case, key, value):
    """The recorded value, once the kernel's is seen to agree as far as the record is exact.

    The reference, though called in float64, computes its noise levels, their differences and the
    scalings in float32, and a network that multiplies log(sigma) by 250 magnifies their rounding;
    where its tanh saturates the recorded gradients are rounding alone (1e-16).
    """
    recorded = np.asarray(case[key], np.float64)
    tolerance = 5e-6 if value.dtype == jnp.float64 else 1e-4
    atol = tolerance * np.max(np.abs(recorded)) + 1e-14
    np.testing.assert_allclose(value, recorded, rtol=0, atol=atol, err_msg=key)
    return jnp.asarray(case[key], value.dtype)


def karras_distillation(case):
    data_scale, lowest = case["sigma_data"], case["sigma_min"]
    count, indices = case["num_scales"], case["indices"]

    def denoiser(weights, bias, sigma_min):
        def denoise(noisy, sigma):
            single = jnp.asarray(sigma, jnp.float32)
            skip, out, inner = noise_schedules.karras_scalings(
                single, sigma_data=data_scale, sigma_min=sigma_min
            )
            hidden = (inner[:, None] * noisy) @ weights.T + bias * (250 * jnp.log(single))[:, None]
            return skip[:, None] * noisy + out[:, None] * jnp.tanh(hidden)

        return denoise

    def sigmas(fraction):
        levels = noise_schedules.karras_sigmas(
            jnp.asarray(fraction, jnp.float32),
            sigma_min=lowest,
            sigma_max=case["sigma_max"],
            rho=case["rho"],
        )
        return levels.astype(case["x0"].dtype)

    clean, noise = case["x0"], case["noise"]
    target = denoiser(case["target_A"], case["target_b"], lowest)
    teacher = denoiser(case["teacher_A"], case["teacher_b"], 0.0)
    weighting = "karras" if case["weight_schedule_is_karras"] else "uniform"

    def at(sigma):
        levels = noise_schedules.exploding_schedule(sigma)
        weight = noise_schedules.loss_weight(*levels, weighting=weighting, sigma_data=data_scale)
        return diffusion.add_noise(clean, noise, *levels), weight

    def distilled(student):
        sigma, following = (sigmas((indices + i) / (count - 1)) for i in (0, 1))
        noisy, weight = at(sigma)
        return step_distillation.consistency_distillation(
            noisy,
            sigma,
            following,
            student=student,
            target=target,
            teacher=teacher,
            weight=weight,
        )

    def trained(student):
        sigma, following = (sigmas((indices + i) / (count - 1)) for i in (0, 1))
        return step_distillation.consistency_training(
            clean, noise, sigma, following, student=student, target=target, weight=at(sigma)[1]
        )

    def progressive(student):
        sigma, middle, end = (sigmas((indices + i) / count) for i in (0, 0.5, 1))
        noisy, weight = at(sigma)
        goal = step_distillation.progressive_target(
            noisy,
            sigma,
            middle,
            end,
            teacher=teacher,
            schedule=noise_schedules.exploding_schedule,
        )
        return step_distillation.target_regression(student(noisy, sigma), goal, weight=weight)

    results = {}
    # Only a consistency model fixes its data at sigma_min.
    modes = {"cd": (distilled, lowest), "ct": (trained, lowest), "pd": (progressive, 0.0)}
    for name, (losses, sigma_min) in modes.items():

        def mean(weights, bias, losses=losses, sigma_min=sigma_min):
            values = losses(denoiser(weights, bias, sigma_min))
            return values.mean(), values

        gradients, values = jax.jit(jax.grad(mean, argnums=(0, 1), has_aux=True))(
            case["student_A"], case["student_b"]
        )
        for key, value in zip(("loss", "grad_A", "grad_b"), (values, *gradients)):
            results[f"{name}_{key}"] = confirmed(case, f"{name}_{key}", value)
    return results


def dmd(case):
    """Guidance by both conditions where their scales differ; a scale is that above 1 otherwise.

    The given frames have no gradient but stay in the normaliser, unlike under `where` of `dmd`.
    """

    def guide(side):
        text, audio = case[f"{side}_text_scale"], case[f"{side}_audio_scale"]
        both, first, none = (case[f"{side}_{key}"] for key in ("cond", "text_only", "uncond"))
        if text == audio:
            return diffusion_steps.guided(none, both, scale=1 + text)
        return diffusion_steps.guided_by_two(
            none, first, both, first_scale=text, second_scale=audio
        )

    shape = case["x"].shape
    frames = jnp.arange(shape[1]) >= case["masked_frames"]
    where = jnp.broadcast_to(frames[:, None, None, None], shape)
    gradient = score_matching.dmd_gradient(case["x"], guide("fake"), guide("real"))

    def loss(case):
        surrogate = score_matching.gradient_surrogate(case["x"], gradient, where=where)
        return surrogate.mean()  # as many frames in each example

    return {"kl_grad": gradient, **loss_and_gradients(loss, "x")(case)}


def denoising(case):
    """Regressions to the data, the noise and the velocities.

    The v-loss weighs the error of the data with 1 / (1 - alphabar) = 1 / sigma^2.
    """
    regression = step_distillation.target_regression
    mask = case["mask"] != 0
    kept = mask.reshape(mask.shape[0], -1).sum(1)
    variance = 1 - case["alphas_cumprod"][case["t"]]

    def losses(predictions):
        clean, noise = case["x"], case["noise"]
        flow = diffusion.flow_velocity(clean, noise)
        masked = regression(predictions["flow"], flow, where=mask)
        return {
            "x0": regression(predictions["x_pred"], clean).mean(),
            "v": regression(predictions["x_pred"], clean, weight=1 / variance).mean(),
            "noise": regression(predictions["noise"], noise).mean(),
            "flow": regression(predictions["flow"], flow).mean(),
            "flow_masked": jnp.sum(masked * kept) / jnp.maximum(jnp.sum(kept), 1),
        }

    predictions = {
        "x_pred": case["x_pred"],
        "noise": case["noise_pred"],
        "flow": case["flow_pred"],
    }
    values = losses(predictions)
    gradients = jax.jit(jax.jacrev(losses))(predictions)
    predicted = dict(x0="x_pred", v="x_pred", noise="noise", flow="flow", flow_masked="flow")
    return {
        **{f"loss_{name}": value for name, value in values.items()},
        **{f"grad_{name}": gradients[name][key] for name, key in predicted.items()},
    }


def flow_match_scheduler(case):
    count = case["num_steps"]
    grid = jnp.asarray(np.linspace(1, 0, count + 1)[:-1], case["x0"].dtype)
    sigmas = noise_schedules.shift_sigmas(grid, shift=case["shift"])
    timesteps = 1000 * sigmas
    nearest = jnp.argmin(jnp.abs(timesteps - case["t"][:, None]), axis=1)
    sigma = sigmas[nearest]
    following = jnp.append(sigmas, 0.0)[nearest + 1]
    noisy = diffusion.add_noise(case["x0"], case["noise"], 1 - sigma, sigma)
    velocity = case["velocity"]  # a prediction
    level = case["sigmas"][nearest]  # as x_t of float32 precision, also where float64 is asked
    return {
        "sigmas": sigmas,
        "timesteps": timesteps,
        "train_weights": noise_schedules.bell_weights(timesteps),
        "timestep_id": nearest,
        "x_t": noisy,
        "x0_from_velocity": diffusion.clean_from_flow(case["x_t"], velocity, 1 - level, level),
        # Recorded with x0 in the place of the noisy sample.
        "euler_next": diffusion_steps.euler_step(case["x0"], velocity, sigma, following),
        "warped_steps": jnp.append(timesteps, 0.0)[1000 - case["denoising_steps"]],
    }


def boot(case):
    """Of the recorded ratio and slope, targets of the signal 1 or 0 and the prediction 0 or 1."""
    times, next_times, regression = case["t"], case["s"], step_distillation.target_regression
    start, end = (noise_schedules.cosine_schedule(t) for t in (times, next_times))
    noise, signal, clean = case["eps"], case["y_t"], case["teacher_x"]
    one, none = jnp.ones((len(times), 1), times.dtype), jnp.zeros((len(times), 1), times.dtype)
    noisy = diffusion.add_noise(signal, noise, *start)
    moved = diffusion_steps.ddim_step(noisy, clean, *start, *end)
    exact = bootstrapping.boot_target_exact(signal, clean, times, next_times)
    euler = bootstrapping.boot_target_euler(signal, clean, times, next_times)
    slope = bootstrapping.boot_target_euler(none, one, times, next_times)[:, 0]
    predictions = iter([clean, case["teacher_x_at_s"]])
    results = {
        "s": jnp.maximum(times - case["delta"], case["t_min"]),
        "x_t": noisy,
        "ratio": bootstrapping.boot_target_exact(one, none, times, next_times)[:, 0],
        "lambda_prime": slope / (times - next_times),
        "target_exact": exact,
        "target_euler": euler,
        "target_heun_log": bootstrapping.boot_target_heun(
            signal, noise, times, next_times, teacher=lambda *_: next(predictions)
        ),
        "ddim_next": moved,
        "signal_of_ddim_next": diffusion.clean_from_noise(moved, noise, *end),
    }

    def loss(prediction, target, weighting):
        weight = bootstrapping.boot_weight(times, next_times, weighting=weighting)
        return regression(prediction, target, weight=weight).mean()

    value_and_grad = jax.value_and_grad(loss)
    for name, target, weighting in (
        ("exact_uniform", exact, "uniform"),
        ("euler_inv_delta2", euler, "inverse_squared_time"),
        ("exact_inv_step2", exact, "inverse_squared_step"),
    ):
        found = value_and_grad(case["g_s"], target, weighting)
        results[f"loss_{name}"], results[f"grad_gs_{name}"] = found
    boundary = value_and_grad(case["g_T"], case["teacher_x_T"], "uniform")
    return {**results, "loss_boundary": boundary[0], "grad_gT": boundary[1]}


ADAPTERS = {
    "00e-diffusion_basics": diffusion_basics,
    "00e-karras_distillation": karras_distillation,
    "19-denoising_losses": denoising,
    "19-dmd_kl_grad": dmd,
    "19-flow_match_scheduler": flow_match_scheduler,
    "23-boot_losses": boot,
}

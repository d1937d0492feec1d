"""Distillation losses: pure, unreduced functions of arrays.

    from kdjax import losses
    loss = losses.kd(student_logits, teacher_logits, temperature=4.0)      # [batch]

Arrays come first (student, teacher, labels), hyperparameters follow by keyword and may be traced
unless they fix a shape. What comes out is unreduced, in float32: [..., classes] -> [...], or one
value an anchor where examples are compared with each other; the caller weighs and reduces.
`where` hides entries: they add nothing, whatever they hold. Arguments named `teacher_*` are
constants; a divergence, of p and q, differentiates both.

    logits        the answers of classifiers
    divergences   between distributions
    rankings      ordered items
    sequences     tokens of language models
    vocabularies  the same from hidden states and heads, never [tokens, vocabulary]
    contrast      pairs against negatives
    features      maps and vectors inside
    relations     examples of a batch among themselves
    dense         maps of pixels, objects, regions
    modalities    several inputs, some missing; survival
    transport     optimal transport
    generation    diffusion and its distillation
    data          without data, or with a synthetic set
    quantisation  few bits, codes
    search        students found without training

The functions of other libraries, call for call, are in `kdjax.losses.compat`. What is imported
below is the public face; there is no second list of it.
"""

from kdjax.losses.binary import binary_kl, binary_kl_norm
from kdjax.losses.bootstrapping import (
    boot_target_euler,
    boot_target_exact,
    boot_target_heun,
    boot_weight,
)
from kdjax.losses.centers import (
    Centres,
    binary_focal,
    center_regression_l1,
    centernet_focal,
    decode_centres,
    draw_gaussian,
    gather_at_centres,
    gaussian_radius,
)
from kdjax.losses.checks import valid_labels
from kdjax.losses.clip_distillation import (
    affinity_mimicking,
    clip_kd_ckd,
    clip_kd_cross_kd,
    clip_kd_icl,
)
from kdjax.losses.clip_features import clip_kd_afd, clip_kd_fd, clip_kd_gd
from kdjax.losses.contrastive import (
    albef_ita,
    clip_info_nce,
    in_batch_scores,
    info_nce,
    l2_normalize,
    moco_info_nce,
    momentum_soft_targets,
    queue_scores,
)
from kdjax.losses.correlations import batch_correlation, class_correlation, mlkd, mlkd_masks
from kdjax.losses.cross_tokenizer import (
    align_spans,
    hybrid_uld,
    hybrid_uld_terms,
    matched_tokens,
    merge_spans,
    uld,
)
from kdjax.losses.data_free import (
    activation_loss,
    bn_statistics,
    clamped_jsd,
    class_balance,
    image_tv_prior,
    one_hot_loss,
)
from kdjax.losses.dataset_matching import (
    distribution_matching,
    gradient_matching,
    gradient_matching_cosine,
    gradient_matching_mse,
    soft_label_cross_entropy,
    trajectory_matching,
    unrolled_sgd,
    unrolled_sgd_in_constant_memory,
)
from kdjax.losses.dense import (
    category_similarity_kd,
    channel_wise_distillation,
    pixelwise_kd,
    skds_pixelwise,
)
from kdjax.losses.dense_memory import (
    ClassEmbeddings,
    ClassMemory,
    empty_memory,
    enqueue_by_class,
    memory_relation_kd,
    pixel_embeddings,
    region_embeddings,
    sample_memory,
    wgan_critic,
    wgan_generator,
    wgan_gradient_penalty,
)
from kdjax.losses.dense_relations import (
    cross_image_relation_kd,
    intra_class_feature_variation,
    pairwise_similarity_kd,
    skds_pairwise,
)
from kdjax.losses.diffusion import (
    add_noise,
    clean_from_flow,
    clean_from_noise,
    clean_from_velocity,
    flow_velocity,
    noise_from_clean,
    noise_from_velocity,
    velocity,
)
from kdjax.losses.diffusion_steps import (
    ddim_inverse,
    ddim_sample,
    ddim_step,
    euler_step,
    guided,
    guided_by_two,
    heun_step,
)
from kdjax.losses.divergences import (
    alpha_beta_divergence,
    forward_kl,
    generalized_jsd,
    jeffreys,
    kl_divergence,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    standard_normal_kl,
    total_variation,
)
from kdjax.losses.domain_mixture import (
    domain_discrepancy_init,
    domain_discrepancy_update,
    domain_perplexity,
)
from kdjax.losses.dual_head import (
    DualHeadLosses,
    Interpolation,
    best_interpolation,
    dho,
    dual_head_correct,
    dual_head_log_probs,
    dual_head_probs,
    entropy_adaptive_alpha,
    search_alpha_beta,
)
from kdjax.losses.feature_levels import hcl, semckd
from kdjax.losses.features import (
    attention_transfer,
    factor_transfer,
    fsp,
    fsp_matrix,
    hint,
    nst,
    simkd,
    srrl,
    vid,
)
from kdjax.losses.fusion_ratios import (
    ada_ratio,
    annealed_ratio,
    class_mean_predictions,
    fused_kd,
    trilateral_features,
    wls_ratio,
)
from kdjax.losses.gradients import gradient_align, gradient_cosine, pcgrad
from kdjax.losses.hard_negatives import (
    HardNegatives,
    mine_hard_negatives,
    partial_ranking_contrastive_loss,
    valid_negatives,
)
from kdjax.losses.interpolation import TaidState, interpolated_teacher_logits, taid, taid_update
from kdjax.losses.layers import (
    minilm_attention,
    minilm_relation,
    mobilebert_attention,
    mobilebert_features,
    patient_kd,
    patient_kd_layers,
    tinybert_attention,
    tinybert_attention_layers,
    tinybert_hidden,
    tinybert_hidden_layers,
)
from kdjax.losses.learning_to_rank import (
    approx_ndcg,
    lambdarank,
    listmle,
    listnet,
    margin_mse,
    ordered_pairs,
    partial_listmle,
    ranknet,
)
from kdjax.losses.logit_matching import mse_logits, transformed_teacher_matching, wsld
from kdjax.losses.logits import (
    cross_entropy,
    dist,
    dkd,
    kd,
    logit_standardized_kd,
    nkd,
    standardize_logits,
)
from kdjax.losses.memory_bank import (
    crd_initial_log_z,
    crd_nce,
    crd_sample_indices,
    crd_scores,
    crd_update_bank,
    enqueue,
)
from kdjax.losses.modalities import (
    all_modality_subsets,
    apply_modality_mask,
    bernoulli_mask,
    fixed_missing_lists,
    masked_mean_fusion,
    sample_subset_by_size,
    sample_subset_mask,
)
from kdjax.losses.mutual import (
    dml,
    kdcl,
    kdcl_general,
    kdcl_general_weights,
    kdcl_linear,
    kdcl_min_logit,
    kdcl_naive,
    mutual_cotraining_loss,
    one_loss,
)
from kdjax.losses.noise_schedules import (
    bell_weights,
    cosine_schedule,
    exploding_schedule,
    flow_schedule,
    karras_scalings,
    karras_sigmas,
    linear_schedule,
    log_snr,
    loss_weight,
    shift_sigmas,
)
from kdjax.losses.phases import PhaseState, alternating_phases, phase_controller
from kdjax.losses.policy import (
    clipped_policy_gradient,
    discounted_returns,
    minillm_rewards,
    reverse_kl_advantage,
    reverse_kl_estimate,
    teacher_mixed_weights,
    whiten,
)
from kdjax.losses.pooling import adaptive_average_pool, match_spatial
from kdjax.losses.preactivations import activation_boundary, ofd_margin, ofd_partial_l2
from kdjax.losses.preference import (
    dpo,
    dpo_hinge,
    ipo,
    kto,
    kto_pair,
    kto_reference_point,
    sequence_logprob,
)
from kdjax.losses.quantization import (
    FloatFormat,
    learned_step_quantize,
    quantize_float,
    quantize_int,
    quantize_int_asymmetric,
    round_to_float,
    straight_through_round,
    symmetric_scale,
)
from kdjax.losses.ranking import (
    listmle_weights,
    p_listmle_weights,
    plackett_luce,
    plackett_luce_nll,
    teacher_optimal_ranking,
)
from kdjax.losses.relation_matrices import (
    cosine_gram,
    entropy_share,
    relation_gap,
    row_normalized_gram,
    taylor_correlation,
)
from kdjax.losses.relations import (
    cc_adjacent,
    cc_taylor,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from kdjax.losses.residual_quantization import (
    Quantized,
    codebook_distances,
    residual_quantize,
    sinkhorn_assignment,
    update_codebook,
    vector_quantize,
)
from kdjax.losses.routing import (
    importance_loss,
    l0_expected_sparsity,
    l0_gate,
    l0_open_probability,
    load_balancing_loss,
    load_loss,
    mixtral_balance,
    router_z_loss,
    sparsity_penalty,
    switch_balance,
)
from kdjax.losses.score_matching import (
    adversarial_critic,
    adversarial_generator,
    dmd,
    dmd_gradient,
    gradient_surrogate,
    score_distillation,
    sid,
)
from kdjax.losses.self_distillation import opsd, topk_teacher_support
from kdjax.losses.singular_vectors import kdsvd
from kdjax.losses.sparse import (
    hinge_ranking,
    logistic_ranking,
    sparse_buckets,
    sparse_cross_entropy,
    sparse_js,
    sparse_kl,
    sparse_tvd,
)
from kdjax.losses.sparse_targets import (
    gathered_log_softmax,
    merge_duplicates,
    random_sample_targets,
    sparse_target_log_probs,
    topk_student_support,
)
from kdjax.losses.step_distillation import (
    consistency_distillation,
    consistency_schedule,
    consistency_training,
    progressive_target,
    target_regression,
)
from kdjax.losses.student_search import (
    best_rank_at_k,
    channel_correlation,
    diswot,
    precision_at_top_k,
    rank_difference,
    relation_similarity,
    semantic_similarity,
)
from kdjax.losses.survival import (
    cox_partial_likelihood,
    discrete_survival_ce,
    discrete_survival_nll,
    discretise_survival,
    hazard_kd,
    hazards_to_survival,
    log_hazard_mse,
    num_event_times,
    survival_risk,
)
from kdjax.losses.teacher_free import (
    cwtm_weights,
    permute_dark_knowledge,
    uskd,
    virtual_teacher,
    virtual_teacher_kd,
)
from kdjax.losses.teacher_routing import route_topk, routed_topk_distillation
from kdjax.losses.temperature import gradient_reversal, learned_temperature, reversal_schedule
from kdjax.losses.token_graph import (
    inner_context_loss,
    token_knn_adjacency,
    token_local_loss,
    token_neighbors,
    tokenize_feature_map,
)
from kdjax.losses.tokens import (
    completion_mask,
    engine,
    next_token_labels,
    sampled_token_reverse_kl,
    selective_log_softmax,
    sequence_mean,
    sequence_total,
    soft_cross_entropy,
    token_mean,
    token_total,
)
from kdjax.losses.transport import (
    Transport,
    entropic_transport,
    pairwise_lp_cost,
    sinkhorn_divergence,
    sinkhorn_kd,
    sinkhorn_plan,
)
from kdjax.losses.vocabulary import (
    linear_alpha_beta,
    linear_cross_entropy,
    linear_generalized_jsd,
    linear_kl,
    linear_reverse_kl,
    linear_skewed_kl,
    linear_taid,
    linear_total_variation,
)
from kdjax.losses.vocabulary_arguments import Head
from kdjax.losses.zero_cost import (
    epe_nas,
    fisher,
    grad_norm,
    grasp,
    jacobian_covariance,
    l2_norm,
    nwot,
    plain_saliency,
    snip,
    synflow,
    zen,
)
from kdjax.losses.zero_shot import (
    clap_class_weights,
    clap_constraint,
    clip_zero_shot_logits,
    tip_adapter_logits,
    zero_shot_class_embeddings,
)

"""The claims of the papers: IDDPM, DDPM, DDGAN and SIDDM.

How to add one: docs/claims.md.
"""

from __future__ import annotations

from harness.analysis.claims.claim import Between, Claim, Side, Source

COSINE = Side("cosine", {"diffusion.schedule.name": "cosine"})
LINEAR = Side("linear", {"diffusion.schedule.name": "linear"})

SIMPLE = Side("simple", {"objective.name": "simple"})
HYBRID = Side("hybrid", {"objective.name": "hybrid"})
VLB = Side("vlb", {"objective.name": "vlb"})
OBJECTIVE = ("objective", "diffusion.var_type", "timestep_sampler", "σ²")  # L_vlb's rows are trained with sampled t

UNIFORM = Side("uniform t", {"timestep_sampler.name": "uniform"})
RESAMPLED = Side("resampled t", {"timestep_sampler.name": "loss_second_moment"})

DDIM = Side("ddim", {"evaluation.sampler.name": "ddim"})
ANCESTRAL = Side("ancestral", {"evaluation.sampler.name": "ancestral"})

FIXED_BOUND = {"objective.name": "vlb", "diffusion.var_type": ("fixed_small", "fixed_large")}
EPSILON = Side("epsilon", {"diffusion.mean_type": "epsilon"})
BETA, BETA_TILDE = Side("β", {"σ²": "β"}), Side("β̃", {"σ²": "β̃"})

DDGAN = Side("DDGAN", {"method.name": "ddgan"})
GAME = {"method.name": "siddm", "method.adversarial": True}
SIDDM = Side("SIDDM", GAME | {"method.lambda_afd": Between(1e-12)})
WITHOUT_AFD = Side("SIDDM without AFD", GAME | {"method.lambda_afd": 0})
WEIGHT_1 = Side("λ = 1", GAME | {"method.lambda_afd": 1})
AFD_ALONE = Side("AFD alone", {"method.name": "siddm", "method.adversarial": False, "method.lambda_afd": 1})

CHAIN = "diffusion.num_timesteps"


def _chains(*lengths: int) -> tuple[Side, ...]:
    return tuple(Side(f"T = {length}", {CHAIN: length}) for length in lengths)


IDDPM_DIGITS = "claims/iddpm_digits.yaml"
DDPM_DIGITS = "claims/ddpm_digits.yaml"
SCALING_DIGITS = "claims/scaling_digits.yaml"
GAN_DIGITS = "claims/siddm_digits.yaml"
MIXTURE = "claims/siddm_mixture.yaml"

CLAIMS: tuple[Claim, ...] = (
    # ------------------------------------------------------------------------------------------------------- IDDPM
    Claim(
        id="iddpm-cosine-nll",
        statement="The cosine schedule reaches a better NLL than the linear one",
        source=Source("IDDPM", "table 2", "CIFAR-10, L_hybrid, 3.17 against 3.26; dropout differs too"),
        ours=(COSINE,),
        others=(LINEAR,),
        metric="nll",
        varies=("diffusion.schedule",),
        named_by="objective.name",
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-cosine-fid",
        statement="The cosine schedule reaches a better FID than the linear one",
        source=Source("IDDPM", "table 1", "ImageNet-64, 27.0 against 31.3 and 28.0 against 32.2"),
        ours=(COSINE,),
        others=(LINEAR,),
        metric="fid",
        varies=("diffusion.schedule",),
        named_by="objective.name",
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-hybrid-nll",
        statement="L_hybrid reaches a better NLL than L_simple",
        source=Source("IDDPM", "table 2", "CIFAR-10, cosine, 3.17 against 3.26"),
        ours=(HYBRID,),
        others=(SIMPLE,),
        metric="nll",
        varies=OBJECTIVE,
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-hybrid-fid",
        statement="L_hybrid costs nothing in FID: at most 10 % above L_simple",
        source=Source("IDDPM", "tables 1 and 2", "cosine, 28.0 against 27.0 and 3.19 against 3.05; the 10 % are ours"),
        ours=(HYBRID,),
        others=(SIMPLE,),
        metric="fid",
        varies=OBJECTIVE,
        margin=0.1,
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-vlb-nll",
        statement="L_vlb reaches the best NLL",
        source=Source("IDDPM", "table 2", "CIFAR-10, cosine, 2.94 against 3.17 and 3.26; with importance-sampled t"),
        ours=(VLB,),
        others=(HYBRID, SIMPLE),
        metric="nll",
        varies=OBJECTIVE,
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-vlb-fid",
        statement="L_vlb reaches the worst FID: that of the others is lower",
        source=Source("IDDPM", "table 2", "CIFAR-10, cosine, 3.19 and 3.05 against 11.47"),
        ours=(HYBRID, SIMPLE),
        others=(VLB,),
        metric="fid",
        varies=OBJECTIVE,
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-learned-variance-few-steps",
        statement="A learned variance gives a better FID than a fixed one below 50 steps",
        source=Source("IDDPM", "figure 8", "models of 4,000 steps; L_hybrid is near its best at 100"),
        ours=(Side("learned variance", {"diffusion.var_type": "learned_range"}),),
        others=(Side("fixed variance", {"diffusion.var_type": "fixed"}),),
        where={"objective.name": ("hybrid", "simple"), "evaluation.sampler.name": "ancestral"},
        metric="sweep",
        num_steps=Between(high=50),
        varies=OBJECTIVE,
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-ddim-few-steps",
        statement="DDIM gives a better FID than ancestral sampling below 50 steps",
        source=Source("IDDPM", "figure 8", "models of 4,000 steps"),
        ours=(DDIM,),
        others=(ANCESTRAL,),
        metric="sweep",
        num_steps=Between(high=50),
        varies=("evaluation.sampler",),
        named_by="arm",
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-ddim-many-steps",
        statement="DDIM gives a worse FID than ancestral sampling from 50 steps on",
        source=Source("IDDPM", "figure 8", "models of 4,000 steps"),
        ours=(ANCESTRAL,),
        others=(DDIM,),
        metric="sweep",
        num_steps=Between(low=50),
        varies=("evaluation.sampler",),
        named_by="arm",
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-vlb-gradient-noise",
        statement="L_vlb's gradient is noisier than L_hybrid's",
        source=Source("IDDPM", "figure 7", "by orders of magnitude"),
        ours=(HYBRID,),
        others=(VLB,),
        where={"timestep_sampler.name": "uniform"},
        metric="noise_scale",
        varies=OBJECTIVE,
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-resampling-gradient-noise",
        statement="Drawing t by its loss lowers the noise of L_vlb's gradient",
        source=Source("IDDPM", "section 3.3 and figure 6", "no numbers"),
        ours=(RESAMPLED,),
        others=(UNIFORM,),
        where=VLB.values,
        metric="noise_scale",
        varies=("timestep_sampler",),
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-resampling-nll",
        statement="L_vlb reaches a better NLL with t drawn by its loss",
        source=Source("IDDPM", "figure 6", "curves without numbers"),
        ours=(RESAMPLED,),
        others=(UNIFORM,),
        where=VLB.values,
        metric="nll",
        varies=("timestep_sampler",),
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-plain-vlb-nll",
        statement="L_vlb with uniform t reaches a worse NLL than L_hybrid",
        source=Source("IDDPM", "figure 6", "curves without numbers"),
        ours=(HYBRID,),
        others=(VLB,),
        where={"timestep_sampler.name": "uniform"},
        metric="nll",
        varies=OBJECTIVE,
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-longer-chain-nll",
        statement="A longer chain reaches a better NLL",
        source=Source("IDDPM", "tables 1 and 2", "T = 4,000 against 1,000, L_simple: 3.77 to 3.99, 3.37 to 3.73"),
        ours=_chains(200, 4000),
        others=_chains(100, 1000),
        where=SIMPLE.values,
        metric="nll",
        varies=(CHAIN,),
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-class-conditional-fid",
        statement="Labels improve FID",
        source=Source(
            "IDDPM", "tables 1 and 4", "ImageNet-64, 6.92 against 19.2; number of samples and iterations differ too"
        ),
        ours=(Side("with labels", {"model.class_cond": True}),),
        others=(Side("without labels", {"model.class_cond": False}),),
        metric="fid",
        varies=("model.class_cond",),
        named_by="objective.name",
        study=IDDPM_DIGITS,
    ),
    Claim(
        id="iddpm-scaling-nll",
        statement="NLL falls with the width of the network, and so with compute",
        source=Source("IDDPM", "figure 10", "3.40 + (3.0e-15 compute)^-0.17; widths 64 to 192"),
        ours=(Side("wider", {"model.channels": (64, 96, 128, 192)}),),
        others=(Side("narrower", {"model.channels": (16, 32, 64)}),),
        metric="nll",
        varies=("model.channels", "optim.lr"),
        named_by="objective.name",
        study=SCALING_DIGITS,
    ),
    Claim(
        id="iddpm-scaling-fid",
        statement="FID falls with the width of the network, and so with compute",
        source=Source("IDDPM", "figure 10", "4.00 + (2.5e-25 compute)^-0.22; widths 64 to 192"),
        ours=(Side("wider", {"model.channels": (64, 96, 128, 192)}),),
        others=(Side("narrower", {"model.channels": (16, 32, 64)}),),
        metric="fid",
        varies=("model.channels", "optim.lr"),
        named_by="objective.name",
        study=SCALING_DIGITS,
    ),
    # -------------------------------------------------------------------------------------------------------- DDPM
    Claim(
        id="ddpm-simple-fid",
        statement="L_simple gives a better FID than the bound",
        source=Source("DDPM", "table 2", "CIFAR-10, epsilon, fixed variance, 3.17 against 13.51"),
        ours=(Side("L_simple", SIMPLE.values),),
        others=(Side("the bound", FIXED_BOUND),),
        where=EPSILON.values,
        metric="fid",
        varies=OBJECTIVE,
        study=DDPM_DIGITS,
    ),
    Claim(
        id="ddpm-bound-nll",
        statement="The bound gives a better NLL than L_simple",
        source=Source("DDPM", "table 1", "CIFAR-10, at most 3.70 against 3.75"),
        ours=(Side("the bound", FIXED_BOUND),),
        others=(Side("L_simple", SIMPLE.values),),
        where=EPSILON.values,
        metric="nll",
        varies=OBJECTIVE,
        study=DDPM_DIGITS,
    ),
    Claim(
        id="ddpm-epsilon-against-mean",
        statement="Under L_simple, predicting ε gives a better FID than the mean of x_{t-1}",
        source=Source("DDPM", "table 2", "CIFAR-10, 3.17; plain MSE on the mean was unstable"),
        ours=(EPSILON,),
        others=(Side("mean", {"diffusion.mean_type": "previous_x"}),),
        where=SIMPLE.values,
        metric="fid",
        varies=("diffusion.mean_type",),
        study=DDPM_DIGITS,
    ),
    Claim(
        id="ddpm-epsilon-against-x0",
        statement="Under L_simple, predicting ε gives a better FID than x_0",
        source=Source("DDPM", "section 3.2", "no numbers", "from memory"),
        ours=(EPSILON,),
        others=(Side("x_0", {"diffusion.mean_type": "x_0"}),),
        where=SIMPLE.values,
        metric="fid",
        varies=("diffusion.mean_type",),
        study=DDPM_DIGITS,
    ),
    Claim(
        id="ddpm-fixed-against-learned",
        statement="Under the bound, a fixed variance gives a better FID than a learned one",
        source=Source("DDPM", "table 2", "CIFAR-10, mean of x_{t-1}, 13.22 against 23.69"),
        ours=(Side("fixed", {"diffusion.var_type": ("fixed_small", "fixed_large")}),),
        others=(Side("learned", {"diffusion.var_type": "learned"}),),
        where={"objective.name": "vlb", "diffusion.mean_type": "previous_x"},
        metric="fid",
        varies=("diffusion.var_type", "σ²"),
        study=DDPM_DIGITS,
    ),
    Claim(
        id="ddpm-beta-fid",
        statement="Fixed variances are alike: FID with β is at most 10 % above β̃'s",
        source=Source("DDPM", "section 3.2", "similar results; the 10 % are ours", "from memory"),
        ours=(BETA,),
        others=(BETA_TILDE,),
        where=SIMPLE.values,
        metric="fid",
        varies=("σ²",),
        margin=0.1,
        study=DDPM_DIGITS,
    ),
    Claim(
        id="ddpm-beta-tilde-fid",
        statement="Fixed variances are alike: FID with β̃ is at most 10 % above β's",
        source=Source("DDPM", "section 3.2", "similar results; the 10 % are ours", "from memory"),
        ours=(BETA_TILDE,),
        others=(BETA,),
        where=SIMPLE.values,
        metric="fid",
        varies=("σ²",),
        margin=0.1,
        study=DDPM_DIGITS,
    ),
    # ------------------------------------------------------------------------------------------------------- DDGAN
    Claim(
        id="ddgan-four-steps-fid",
        statement="DDGAN's four steps give a better FID than one or two",
        source=Source("DDGAN", "table 2", "CIFAR-10, 3.75 against 14.6 and 4.08", "second-hand"),
        ours=_chains(4),
        others=_chains(1, 2),
        where=DDGAN.values,
        metric="fid",
        varies=(CHAIN, "evaluation.fidelity.num_steps"),
        study=GAN_DIGITS,
    ),
    Claim(
        id="ddgan-more-steps-mixture",
        statement="On the mixture DDGAN is better with 4, 8 or 16 steps than with 2",
        source=Source("SIDDM", "table 1", "0.99, 0.49 and 0.53 against 7.27", "second-hand"),
        ours=_chains(4, 8, 16),
        others=_chains(2),
        where=DDGAN.values,
        metric="frechet",
        varies=(CHAIN,),
        named_by="method.name",
        study=MIXTURE,
    ),
    # ------------------------------------------------------------------------------------------------------- SIDDM
    Claim(
        id="siddm-afd-mixture",
        statement="On the mixture SIDDM is better with AFD than without, with 2 to 16 steps",
        source=Source(
            "SIDDM",
            "table 1",
            "for 2, 4, 8 and 16 steps 0.14, 1.21, 0.30 and 0.23 against 21.19, 53.22, 7.04 and 14.37",
            "second-hand",
        ),
        ours=(SIDDM,),
        others=(WITHOUT_AFD,),
        where={CHAIN: (2, 4, 8, 16)},
        metric="frechet",
        varies=("method", "optim"),
        named_by=CHAIN,
        study=MIXTURE,
    ),
    Claim(
        id="siddm-against-ddgan-mixture",
        statement="On the mixture SIDDM is better than DDGAN with 2, 8 and 16 steps",
        source=Source("SIDDM", "table 1", "0.14, 0.30 and 0.23 against 7.27, 0.49 and 0.53", "second-hand"),
        ours=(SIDDM,),
        others=(DDGAN,),
        where={CHAIN: (2, 8, 16)},
        metric="frechet",
        varies=("method", "optim"),
        named_by=CHAIN,
        study=MIXTURE,
    ),
    Claim(
        id="ddgan-against-siddm-mixture",
        statement="On the mixture SIDDM is worse than DDGAN with 4 steps",
        source=Source("SIDDM", "table 1", "1.21 against 0.99", "second-hand"),
        ours=(DDGAN,),
        others=(SIDDM,),
        where={CHAIN: 4},
        metric="frechet",
        varies=("method", "optim"),
        named_by=CHAIN,
        study=MIXTURE,
    ),
    Claim(
        id="siddm-against-ddgan-fid",
        statement="On images SIDDM gives a better FID than DDGAN in four steps",
        source=Source("SIDDM", "table 2", "CIFAR-10, 2.24 against 3.75", "second-hand"),
        ours=(WEIGHT_1,),
        others=(DDGAN,),
        where={CHAIN: 4},
        metric="fid",
        varies=("method", "optim"),
        named_by=CHAIN,
        study=GAN_DIGITS,
    ),
    Claim(
        id="siddm-afd-fid",
        statement="On images SIDDM needs AFD: FID without it is higher",
        source=Source("SIDDM", "table 5a", "CIFAR-10, 2.24 against 77.15", "second-hand"),
        ours=(WEIGHT_1,),
        others=(WITHOUT_AFD,),
        metric="fid",
        varies=("method.lambda_afd",),
        named_by=CHAIN,
        study=GAN_DIGITS,
    ),
    Claim(
        id="siddm-weight-fid",
        statement="On images SIDDM's best weight of AFD is 1, not 0.1, 0.5 or 5",
        source=Source("SIDDM", "table 5a", "CIFAR-10, 2.24 against 3.32, 2.63 and 2.55", "second-hand"),
        ours=(WEIGHT_1,),
        others=tuple(Side(f"λ = {weight}", GAME | {"method.lambda_afd": weight}) for weight in (0.1, 0.5, 5)),
        metric="fid",
        varies=("method.lambda_afd",),
        named_by=CHAIN,
        study=GAN_DIGITS,
    ),
    Claim(
        id="siddm-game-fid",
        statement="On images SIDDM needs the game: FID of AFD alone is higher",
        source=Source("SIDDM", "table 5a", "CIFAR-10, 2.24 against 41.27", "second-hand"),
        ours=(WEIGHT_1,),
        others=(AFD_ALONE,),
        metric="fid",
        varies=("method.adversarial",),
        named_by=CHAIN,
        study=GAN_DIGITS,
    ),
    Claim(
        id="siddm-denoising-fid",
        statement="On images SIDDM needs the discriminator's denoising",
        source=Source("SIDDM", "table 5a", "CIFAR-10, 2.24 against 3.20", "second-hand"),
        ours=(Side("with denoising", GAME | {"method.denoising_weight": Between(1e-12)}),),
        others=(Side("without", GAME | {"method.denoising_weight": 0}),),
        metric="fid",
        varies=("method.denoising_weight",),
        named_by=CHAIN,
        study=GAN_DIGITS,
    ),
)

# Left out, because no contrast of two arms in a metric of the records says it:
# - DDPM: more than half of the bits describe details that nobody sees. Rate and distortion are of one arm; fig_L_t and
#   the evaluation's rate_distortion show them.
# - DDGAN: the latent z is needed (table 2). A generator without one cannot be asked for: latent_dim is at least 1.
# - DDGAN: it covers all 25 modes where a GAN collapses (figure 6). A share of modes, without numbers; tab_mixture.
# - IDDPM: the linear schedule loses little when a fifth of the chain is skipped (figure 4), and a power law fits FID
#   better than NLL (figure 10). These are shapes of curves; fig_scaling has the fits.
# - IDDPM: recall above BigGAN-deep's (table 4). BigGAN is no arm of ours.

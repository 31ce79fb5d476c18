"""CXRL in one file: reinforcement learning with comparative feedback, from a report to an optimizer step.

Read it from top to bottom, the order of the algorithm. ``python examples/cxrl_in_one_file.py`` trains three
small epochs on the phantom that ships, in about a minute on two cores. Only reports and reward models come
from cxrl; docs/method.md says where each step is in the package, which computes the same numbers.

The method is Han et al., MICCAI 2024 (arXiv 2403.06516), who released no code. Where this departs from it:
1. A sample is compared with a bank of anchor images, drawn once per report, not with one anchor image of its
   own; ANCHOR = "one_to_one" is the paper's way.
2. What the paper leaves open is a choice: the form of the comparison, units and weights of the rewards,
   advantages relative to the report's other samples, and PPO's clipped ratio as the policy gradient.
3. LoRA on the UNet's attention learns in place of all of it, and averaged weights (EMA) are the result.
4. A phantom's base, reports and rewards, 64 × 64 pixels, stand in for RoentGen and MIMIC-CXR.

Notation → name: c_p → text, c_s → ace, x → latents, r(x) → r, r(x̂) → anchors, ᾱ → alphas, A → advantage.
Shapes: N samples, the P reports side by side; T steps, T_p with σ > 0; K rewards; M anchor images; B rows.
"""

import hashlib
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTokenizer

import cxrl
from cxrl.data.phantom.films import phantom_prompts
from cxrl.data.prompts import PromptBatch
from cxrl.rewards.base import build_rewards

BASE = Path(cxrl.__file__).with_name("assets") / "phantom" / "pipeline"
SEED, NUM_EPOCHS, NUM_PROMPTS, PROMPTS_PER_EPOCH, SAMPLES_PER_PROMPT = 0, 3, 64, 4, 12
NUM_STEPS, ETA, GUIDANCE = 8, 1.0, 1.0  # DDIM; guidance is alike in sampling, in training and for the anchor
LORA_RANK, NUM_ACE_TOKENS, EMA_DECAY = 8, 4, 0.95
REWARDS = {"posture": 0.75, "diagnosis": 1.5, "consistency": 1.5}  # name: weight
WITHOUT_ANCHOR = {"posture"}  # scored directly, as in the paper
ANCHOR, BANK_SIZE, MIN_STD = "bank", 8, 1e-3  # or one_to_one; MIN_STD: floor of a bank's deviation, in units
FORM, TEMPERATURE = "bradley_terry", 1.0  # or difference, win; TEMPERATURE: width of the sigmoid
CENTER, SCALE, ADVANTAGE_CLIP = "prompt", "std", 5.0  # or batch, whose mean is subtracted; or none
LORA_LR, ACE_LR, WEIGHT_DECAY, MAX_GRAD_NORM = 6e-3, 2e-2, 1e-4, 1.0
CLIP_RANGE, MINIBATCHES, TIMESTEP_FRACTION = 1e-3, 4, 1.0


# --- Randomness by name: a stream is a function of (SEED, purpose, index), whatever was drawn before.
def generator(purpose, *index):
    text = f"{SEED}/{purpose}/" + "/".join(str(i) for i in index)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


def draw_noise(num, latent_shape, rng):
    """[T+1, num, C, h, w]: x_T, then one draw for every step."""
    return torch.stack([torch.randn(num, *latent_shape, generator=rng) for _ in range(NUM_STEPS + 1)])


# --- The policy is the base with LoRA and ACE. Without both it is the anchor, which so can never drift.
class Policy:
    def __init__(self):
        kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
        parts = {name: kind.from_pretrained(BASE, subfolder=name) for name, kind in kinds.items()}
        self.unet, self.vae, self.text_encoder = (p.float().requires_grad_(False) for p in parts.values())
        self.tokenizer = CLIPTokenizer.from_pretrained(BASE, subfolder="tokenizer")
        self.latent_shape = (self.unet.config.in_channels, *2 * [self.unet.config.sample_size])
        self.empty = self.encode([""])
        scheduler = DDIMScheduler.from_pretrained(BASE, subfolder="scheduler")
        scheduler.set_timesteps(NUM_STEPS)
        self.timesteps, self.stride = scheduler.timesteps, len(scheduler.alphas_cumprod) // NUM_STEPS
        self.alphas = scheduler.alphas_cumprod.double()

        seed = generator("policy").initial_seed()
        torch.manual_seed(seed)
        options = {"r": LORA_RANK, "lora_alpha": LORA_RANK, "init_lora_weights": "gaussian"}
        self.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], **options))
        lora = sorted((name, p) for name, p in self.unet.named_parameters() if "lora_" in name)
        pad = self.empty[0, -1]  # ACE starts from the padding token; a little noise tells its tokens apart
        noise = torch.randn(NUM_ACE_TOKENS, len(pad), generator=torch.Generator().manual_seed(seed))
        self.ace = torch.nn.Parameter(pad + 0.02 * pad.std() * noise)
        self.weights = {**dict(lora), "ace": self.ace}
        self.ema, self.num_updates = {name: p.detach().clone() for name, p in self.weights.items()}, 0

    def encode(self, texts):
        """c_p [N, L, D] of reports."""
        tokens = self.tokenizer(texts, padding="max_length", return_tensors="pt")
        return self.text_encoder(tokens.input_ids)[0]

    def decode(self, x_0):
        """Images [N, 1, H, W] in [0, 1]."""
        images = self.vae.decode(x_0 / self.vae.config.scaling_factor).sample / 2 + 0.5
        return images.clamp(0, 1).mean(1, keepdim=True)

    def predict(self, x_t, t, text, anchor):
        """The network's output v [B, C, h, w] with guidance; the empty prompt of guidance has ACE too."""
        texts = [text] if GUIDANCE == 1 else [text, self.empty.expand(len(text), -1, -1)]
        if not anchor:
            texts = [
                torch.cat([c_p, self.ace.expand(len(c_p), -1, -1)], dim=1) for c_p in texts
            ]  # [c_p; c_s]
        (self.unet.disable_adapters if anchor else self.unet.enable_adapters)()
        v, *v_empty = (self.unet(x_t, t, c).sample for c in texts)
        return v_empty[0] + GUIDANCE * (v - v_empty[0]) if v_empty else v

    def step(self, x_t, t, text, anchor=False):
        """π(x_{t−1} | x_t, y), a Gaussian: mean [B, C, h, w], σ [B] (Song et al. 2021, formulas 12, 16)."""
        v = self.predict(x_t, t, text, anchor)
        a, before = self.alphas[t], t - self.stride
        p = torch.where(before < 0, 1.0, self.alphas[before.clamp(min=0)])  # ᾱ after the last step is 1
        sigma = ETA * ((1 - p) / (1 - a) * (1 - a / p)).sqrt()
        towards = (1 - p - sigma**2).clamp(min=0).sqrt()
        a, p, towards = (x.float()[:, None, None, None] for x in (a, p, towards))
        x_0, eps = a.sqrt() * x_t - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x_t
        return p.sqrt() * x_0 + towards * eps, sigma.float()


def log_prob(x_prev, mean, sigma):
    """log π [B] in float32: the mean over C·h·w, on which CLIP_RANGE rests; a sum would leave any range."""
    z = (x_prev - mean) / sigma[:, None, None, None]
    return -z.square().mean((1, 2, 3)) / 2 - sigma.log() - math.log(2 * math.pi) / 2


# --- 1. Trajectories x_T → … → x_0. The last step has σ = 0: it is no action, and no part of the policy.
@torch.no_grad()
def sample(policy, text, noise, anchor=False):
    """Latents [N, T+1, C, h, w] and log-probabilities [N, T_p]. ``noise`` is x_T and every step's draw."""
    latents, log_probs = [noise[0]], []
    for t, eps in zip(policy.timesteps, noise[1:], strict=True):
        mean, sigma = policy.step(latents[-1], t.expand(len(text)), text, anchor)
        latents.append(mean + sigma[:, None, None, None] * eps)
        if sigma[0] > 0:
            log_probs.append(log_prob(latents[-1], mean, sigma))
    return torch.stack(latents, dim=1), torch.stack(log_probs, dim=1)


# --- 2. Rewards of the images that trajectories end in: posture, findings, agreement with the report.
@torch.no_grad()
def score_images(policy, rewards, latents, batch):
    """[N, K], higher is better."""
    images = policy.decode(latents[:, -1])
    return torch.stack([rewards[name].score(images, batch) for name in REWARDS], dim=1)


# --- 3. The anchor, frozen. It may share x_T and the report with a sample, which are the state, but never the
#        step noise: the two images would move together, and the expected gradient at the start would be zero.
def anchor_rewards(policy, rewards, batch, x_T, bank, epoch):
    """[N, M, K]. ``bank``: number of a report → [M, K]; filled as reports appear."""
    if ANCHOR == "one_to_one":
        own = draw_noise(len(x_T), policy.latent_shape, generator("anchor", epoch))
        noise = torch.cat([x_T[None], own[:-1]])
        latents, _ = sample(policy, policy.encode(batch.texts), noise, anchor=True)
        return score_images(policy, rewards, latents, batch)[:, None]
    for prompt in batch.prompts:
        if prompt.prompt_id not in bank:
            rngs = [generator("anchor", prompt.prompt_id, m) for m in range(BANK_SIZE)]
            noise = torch.cat([draw_noise(1, policy.latent_shape, rng) for rng in rngs], dim=1)
            alone = PromptBatch.repeat([prompt], BANK_SIZE)
            latents, _ = sample(policy, policy.encode(alone.texts), noise, anchor=True)
            bank[prompt.prompt_id] = score_images(policy, rewards, latents, alone)
    return torch.stack([bank[prompt.prompt_id] for prompt in batch.prompts])[batch.prompt_of]


# --- 4. Comparison: from rewards to one score a sample. Every reward counts in standard deviations.
def reward_units(r):
    """Mean [K], and deviation within a report [K]: of the first epoch, and fixed from then on."""
    return r.mean(0), r.view(PROMPTS_PER_EPOCH, SAMPLES_PER_PROMPT, -1).var(1, correction=0).mean(0).sqrt()


def compare(r, anchors, units):
    """Scores [N] and win-rates [K] of rewards [N, K] against the anchor's [N, M, K]."""
    mean, unit = units
    floor = MIN_STD * unit if anchors.shape[1] > 1 else unit  # one image has no spread of its own
    gap = (r[:, None] - anchors) / anchors.std(1, correction=0).maximum(floor)[:, None]
    wins = ((gap > 0) + (gap == 0) / 2).mean(1)
    compared = {  # scaled so that near the bank's mean a deviation counts 1
        "difference": gap.mean(1),
        "bradley_terry": (gap / TEMPERATURE).sigmoid().mean(1) * 4 * math.sqrt(TEMPERATURE**2 + math.pi / 8),
        "win": wins * math.sqrt(2 * math.pi),
    }[FORM]
    is_direct = torch.tensor([name in WITHOUT_ANCHOR for name in REWARDS])
    weights = torch.tensor(list(REWARDS.values()))
    return torch.where(is_direct, (r - mean) / unit, compared) @ weights, wins.mean(0)


# --- 5. Advantages: how much better a sample is than the other samples of its report.
def advantages(score):
    """[N]; 0 where the scores of a report tie."""
    groups = score.double().view(PROMPTS_PER_EPOCH if CENTER == "prompt" else 1, -1)
    centred = groups - groups.mean(1, keepdim=True)
    rms = centred.square().mean(1, keepdim=True).sqrt()
    ties = rms <= 1e-6 * groups.abs().amax(1, keepdim=True)
    values = torch.where(ties, 0.0, centred / rms if SCALE == "std" else centred)
    return values.flatten().clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP).float()


# --- 6. PPO-clip over rows (sample n, step k), on LoRA and ACE together. Before its first optimizer step the
#        policy is the one that sampled: the ratio is 1.
def update(policy, optimizer, text, latents, old_log_probs, advantage, rng):
    N, T_p = old_log_probs.shape
    steps = torch.rand(N, T_p, generator=rng).argsort(1)[:, : math.ceil(TIMESTEP_FRACTION * T_p)]
    rows = torch.stack([torch.arange(N)[:, None].expand_as(steps), steps], dim=2).flatten(0, 1)
    for part in rows[torch.randperm(len(rows), generator=rng)].tensor_split(MINIBATCHES):
        n, k = part.T
        mean, sigma = policy.step(latents[n, k], policy.timesteps[k], text[n])
        ratio = (log_prob(latents[n, k + 1], mean, sigma) - old_log_probs[n, k]).exp()
        clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
        (-torch.minimum(advantage[n] * ratio, advantage[n] * clipped).mean()).backward()
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        policy.num_updates += 1
        decay = min(EMA_DECAY, (1 + policy.num_updates) / (10 + policy.num_updates))  # a young one is quicker
        for name, p in policy.weights.items():
            policy.ema[name].lerp_(p.detach(), 1 - decay)


def train():
    """Yields, after every epoch, the policy and what it learned from: for N samples, K rewards, M anchors."""
    prompts, rewards = phantom_prompts(NUM_PROMPTS, seed=SEED), build_rewards(list(REWARDS), "phantom")
    policy, bank, units = Policy(), {}, None
    *lora, ace = policy.weights.values()
    groups = [{"params": lora, "lr": LORA_LR}, {"params": [ace], "lr": ACE_LR}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    for epoch in range(NUM_EPOCHS):
        shuffle, position = divmod(epoch, len(prompts) // PROMPTS_PER_EPOCH)
        order = torch.randperm(len(prompts), generator=generator("prompts", shuffle)).tolist()
        chosen = order[position * PROMPTS_PER_EPOCH :][:PROMPTS_PER_EPOCH]
        batch = PromptBatch.repeat([prompts[i] for i in chosen], SAMPLES_PER_PROMPT)
        text = policy.encode(batch.texts)

        noise = draw_noise(len(batch), policy.latent_shape, generator("rollout", epoch))
        latents, log_probs = sample(policy, text, noise)
        r = score_images(policy, rewards, latents, batch)
        anchors = anchor_rewards(policy, rewards, batch, noise[0], bank, epoch)
        units = units or reward_units(r)
        score, win_rate = compare(r, anchors, units)
        advantage = advantages(score)
        update(policy, optimizer, text, latents, log_probs, advantage, generator("rows", epoch))
        yield policy, log_probs, r, anchors, score, win_rate, advantage


def main():
    for epoch, (_, _, r, anchors, _, win_rate, _) in enumerate(train()):
        for k, name in enumerate(REWARDS):
            means = f"policy {r[:, k].mean():6.3f}  anchor {anchors[:, :, k].mean():6.3f}"
            print(f"epoch {epoch}  {name:12} {means}  win-rate {win_rate[k]:.2f}", flush=True)


if __name__ == "__main__":
    main()

"""GKD on prompts and answers of your own: GSM8K's word problems, byte by byte.

    python -m experiments.run --config=configs/language/gsm8k.py \
        --config.data.name=jsonl:gsm8k.jsonl.gz --workdir=runs/gsm8k

Any JSON lines of prompts and answers will do: `{"question": "...", "answer": "...", "split":
"train"}`, gzipped or not; other names with `--config.data.options.prompt` and
`--config.data.options.text`. Without a field `split`, validation and test are carved out. Every
answer begins at one place, `prompt_length`, its prompt padded on the left; a pair that is too long
for its row is dropped. From nothing, two small decoders learn how such answers look, not to reckon:
a pretrained teacher is `--config.teacher.network.name=safetensors`, with its folder as
`--config.teacher.network.path` and `--config.data.tokenizer=teacher`.

Other methods on answers that a model writes: `configs/language/gsm8k.py:distillm` and `:minillm`.
Speculative KD: `--config.method.accept_top_k=25 --config.method.on_policy=1`.
"""

import dataclasses

from experiments import language_configuration
from kdjax import methods


def get_config(method="gkd"):
    config = language_configuration.defaults()
    config.data.name = "jsonl:gsm8k.jsonl.gz"
    config.data.options = dict(prompt="question", text="answer")
    config.data.update(length=512, packed=False, prompt_length=256, drop=True, rows=(2000, 64, 64))
    config.teacher.training.update(steps=600, learning_rate=2e-3)
    config.student.training.update(steps=300, learning_rate=2e-3)
    config.student.warm_up = 200
    config.method = dict(name=method, **dataclasses.asdict(methods.configure(method)))
    return config

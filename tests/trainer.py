"""A real ``transformers.Trainer`` on the tests' model, with the callback that announces its checkpoints."""

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from tests.tiny import TEXTS
from trackstar.tasks.reindex.announce import AnnounceCheckpoints

SAVE_STEPS = 2


def train(checkpoint, directory, *, max_steps=2 * SAVE_STEPS, resume=False):
    """Train, saving every two steps; return the model."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    data = [
        {"input_ids": ids, "labels": ids}
        for ids in (tokenizer(text)["input_ids"][:8] for text in TEXTS)
        if len(ids) == 8
    ]
    arguments = TrainingArguments(
        str(directory), max_steps=max_steps, save_steps=SAVE_STEPS, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    trainer = Trainer(
        model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[AnnounceCheckpoints()]
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return model

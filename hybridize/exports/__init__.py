"""Writers of the export formats: a student in the layout another project reads, exactly.

A writer is one function in one file, named in `hybridize.stages.export.FORMATS`:

    write(model: Model, folder: Path, dtype: str | None) -> None

It puts the weights and their configuration into `folder`, an empty hidden folder that takes its
final name only when all of the export is done and verified; the stage adds tokenizer, generation
settings, recipe, verification and model card. `dtype` is float32, bfloat16, float16, or a type of
the format's own (q8_0); None keeps what the model has. What a format can hold is data in
`hybridize.core.exports`, asked before a writer is called; a writer refuses with a ModelError what
only the weights can tell.

Order of reading: folder.py (what all writers share), granite.py, padding.py, qwen3_5.py, verify.py.
"""

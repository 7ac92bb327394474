"""Ask models for answers and score them, and look at what their converted layers do.

    answers = answer(model.network, model.tokenizer, asked, sampling=Sampling(max_new_tokens=192))
    kinds, overall = score(answers)
    print(compare(answers, answers_of_the_teacher).overall)

Read `suites` (what is asked), `sampling` (how an answer is drawn), `answers` (in this process),
`endpoint` (from a server), `scores` and `paired` (what is counted), then `agreement`, `diagnosis`
(what is measured without generating) and `harness` (lm-evaluation-harness).
"""

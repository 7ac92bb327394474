"""Serving: a model in this process behind a small HTTP server in the manner of OpenAI's API.

    $ python -m hybridize.serving out/h7 --port 8000
    $ curl localhost:8000/v1/completions -d '{"prompt": "recall :", "max_tokens": 20}'

Any layout of any family is served, with nothing installed beside this package. Requests are
answered together, and each as if it were alone; see `stepping`. Nothing is kept from one request
for the next.

Order of reading: jobs, memory and stepping (the computation), loop (who is computed when), asked,
text and answers (the API), handler (HTTP), __main__ (the process).
"""

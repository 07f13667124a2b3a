"""dspy's default way: a model that is asked, and a signature that is predicted.

A model that has learnt nothing cannot keep to dspy's format, so that dspy asks again for a JSON object.
"""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch prices
import dspy

how = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": "none", "cache": False, "num_retries": 0}
lm = dspy.LM(f"openai/{os.environ['MODEL']}", max_tokens=200, **how)
dspy.configure(lm=lm)
lm("7")
try:
    assert dspy.Predict("question -> yes: bool")(question="7").yes in (True, False)
except dspy.utils.exceptions.AdapterParseError as error:
    assert "yes" in str(error), "an object of JSON, but not this one"

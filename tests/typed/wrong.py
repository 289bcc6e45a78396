"""Mistakes that a type checker must find, each marked with a part of mypy's message."""

import llmproxy

llmproxy.convert_request({}, source="openai", target="ollama")  # "Literal['openai']"
llmproxy.StreamConverter(source="ollama", target="anthropic")  # "Literal['anthropic']"
llmproxy.convert.collect([], source="openai-chat")  # "Literal['openai-chat']"
llmproxy.Settings(replay="yes")  # "Literal['yes']"
llmproxy.Settings(keys=3)  # "int"
llmproxy.serve(prot=0)  # "prot"
llmproxy.running(database=1)  # "int"
llmproxy.Filter(status="good")  # "Literal['good']"
llmproxy.open_log(3)  # "int"
print(llmproxy.nothing)  # "nothing"

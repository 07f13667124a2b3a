"""openai-agents' default way: an agent that runs, a turn that knows the one before in both ways, a stream."""

import asyncio
import os

from agents import Agent, Runner, set_tracing_disabled
from agents.exceptions import ModelBehaviorError

set_tracing_disabled(True)  # it would go to OpenAI
agent = Agent(name="conta", instructions="Conta.", model=os.environ["MODEL"])


async def whole(ask):
    """What ask() gives, once an answer ends by itself: of one that a limit cuts the client makes an error."""
    for _ in range(50):
        try:
            return await ask()
        except ModelBehaviorError as error:
            assert "response.incomplete" in str(error), error
    raise AssertionError("no answer ended")


async def stream() -> None:
    async for _ in Runner.run_streamed(agent, "7").stream_events():
        pass


async def main() -> None:  # one event loop, as the client keeps its connections
    first = await whole(lambda: Runner.run(agent, "7"))
    again = [*first.to_input_list(), {"role": "user", "content": "8"}]
    await whole(lambda: Runner.run(agent, again))
    await whole(lambda: Runner.run(agent, "8", previous_response_id=first.last_response_id))
    await whole(stream)


asyncio.run(main())

// What a program with node's `openai` package gets from a server: node client.cjs ADDRESS PICTURE
const { OpenAI, BadRequestError, NotFoundError } = require('openai');
const [address, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL: address + '/v1', apiKey: 'EMPTY' });
const content = [
  { type: 'text', text: 'Where is the star?' },
  { type: 'image_url', image_url: { url: picture } },
];
const asked = { model: 'llava', messages: [{ role: 'user', content }], max_tokens: 30 };

(async () => {
  const found = {};
  found.models = [];
  for await (const model of client.models.list()) found.models.push(model.id);
  const whole = await client.chat.completions.create(asked);
  found.whole = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.prompt_tokens];
  found.streamed = '';
  const options = { include_usage: true };
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: options })) {
    found.streamed += chunk.choices[0]?.delta?.content ?? '';
    if (chunk.usage) found.usage = chunk.usage.prompt_tokens;
  }
  found.helper = await client.chat.completions.stream(asked).finalContent();
  const { data, response } = await client.chat.completions.create(asked).withResponse();
  found.raw = [response.status, response.headers.get('content-type'), data.id.slice(0, 9)];
  try {
    await client.chat.completions.create({ ...asked, temperature: -1 });
  } catch (error) {
    found.error = [error instanceof BadRequestError, error.status, error.param, error.code, error.type];
  }
  try {
    await client.models.retrieve('none');
  } catch (error) {
    found.none = [error instanceof NotFoundError, error.code];
  }
  console.log(JSON.stringify(found));
})();

// Subscribes as an application under Node does, and prints each event as a line of JSON.
// node client.js URL TOKEN TYPE...
import { EventSource } from "eventsource";

const [url, token, ...types] = process.argv.slice(2);
const authorize = (input, init) =>
  fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } });
const print = (value) => process.stdout.write(JSON.stringify(value) + "\n");

const source = new EventSource(url, { fetch: authorize });
source.onopen = () => print({ type: "open" });
for (const type of types) {
  source.addEventListener(type, ({ lastEventId, data }) => print({ type, id: lastEventId, data }));
}

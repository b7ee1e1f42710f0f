// Opens the notification connection of an AE title with ws, subscribes it over HTTP, and prints each event report on a line of its own
// until the workitem is COMPLETED or CANCELED and a ping came after that. Usage: node notifications.mjs URL AE WORKITEM
import WebSocket from "ws";

const [url, ae, workitem] = process.argv.slice(2);
const resource = `${url}/workitems/${workitem}/subscribers/${ae}`;
const subscribed = await fetch(resource, { method: "POST", headers: { Accept: "application/dicom+json" } });
if (subscribed.status !== 201) throw new Error(`subscribing is answered ${subscribed.status}`);
const channel = subscribed.headers.get("content-location");

const socket = new WebSocket(channel, { perMessageDeflate: false });
let pings = 0;
let isFinal = false;
socket.on("ping", () => {
  pings++; // ws answers by itself: the reports before it count as delivered
  if (isFinal) socket.close(1000, "done");
});
socket.on("open", () => console.log(JSON.stringify({ channel, protocol: socket.protocol, extensions: socket.extensions })));
socket.on("message", (data, isBinary) => {
  const report = JSON.parse(data.toString());
  console.log(JSON.stringify({ isBinary, report }));
  const state = report["00741000"]?.Value?.[0];
  isFinal ||= state === "COMPLETED" || state === "CANCELED";
});
socket.on("error", (error) => {
  console.error(error);
  process.exit(1);
});
socket.on("close", (code) => {
  console.log(JSON.stringify({ code, pings }));
  process.exit(0);
});

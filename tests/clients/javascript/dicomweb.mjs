// Stores the files that are named and gets them back with dicomweb-client, as OHIF and Slim use it; prints what it got as JSON.
// Usage: node dicomweb.mjs URL FILE...
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
globalThis.XMLHttpRequest = require("xhr2"); // the browser's, which dicomweb-client speaks through
const { api } = require("dicomweb-client");

const [url, ...files] = process.argv.slice(2);
const client = new api.DICOMwebClient({ url, singlepart: "bulkdata,video" });
const digest = (buffer) => createHash("sha256").update(new Uint8Array(buffer)).digest("hex");
const uidOf = (dataSet, tag) => dataSet[tag].Value[0];

const datasets = [];
for (const file of files) {
  const { buffer, byteOffset, byteLength } = await readFile(file);
  datasets.push(buffer.slice(byteOffset, byteOffset + byteLength));
}
const stored = JSON.parse(await client.storeInstances({ datasets }));
const references = stored["00081199"].Value.map((item) => item["00081190"].Value[0]);

const found = [];
for (const reference of references) {
  const [, studyInstanceUID, seriesInstanceUID, sopInstanceUID] = reference.match(/studies\/([\d.]+)\/series\/([\d.]+)\/instances\/([\d.]+)$/);
  const scope = { studyInstanceUID, seriesInstanceUID, sopInstanceUID };
  const studies = await client.searchForStudies({ queryParams: { StudyInstanceUID: studyInstanceUID } });
  const [metadata] = await client.retrieveInstanceMetadata(scope);
  const frames = await client.retrieveInstanceFrames({ ...scope, frameNumbers: [1] });
  const [rendered] = await client.retrieveInstanceRendered({ ...scope, mediaTypes: [{ mediaType: "image/png" }] });
  const bulkdata = await client.retrieveBulkData({ BulkDataURI: metadata["7FE00010"].BulkDataURI });
  found.push({
    sopInstanceUID: uidOf(metadata, "00080018"),
    studies: studies.map((study) => uidOf(study, "0020000D")),
    instance: digest(await client.retrieveInstance(scope)),
    series: (await client.retrieveSeries(scope)).map(digest),
    frames: frames.map(digest),
    bulkdata: bulkdata.map(digest),
    png: Buffer.from(rendered).subarray(1, 4).toString("latin1"),
  });
}
console.log(JSON.stringify(found));

// Checks manifests of custom kinds, one JSON object a line, and says for each how it is. The schemas
// know values; the types know names, and refuse what a cluster would drop without a word.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createInterface } from "node:readline";

const MODELS = "@kubernetes-models";
const PACKAGES = {
  "cert-manager.io": `${MODELS}/cert-manager`,
  "external-secrets.io": `${MODELS}/external-secrets`,
  "monitoring.coreos.com": `${MODELS}/prometheus-operator`,
  "postgresql.cnpg.io": `${MODELS}/cloudnative-pg`,
};
// What the Barman Cloud plugin wants is the store of CloudNativePG, and few words around it.
const BARMAN = `${MODELS}/cloudnative-pg/github.com/cloudnative-pg/barman-cloud/pkg/api`;
const STORE = `{
  apiVersion: "barmancloud.cnpg.io/v1"; kind: "ObjectStore"; metadata: { name: string; namespace: string };
  spec: {
    configuration: import("${BARMAN}/BarmanObjectStoreConfiguration").IBarmanObjectStoreConfiguration;
    instanceSidecarConfiguration?: { resources?: import("${MODELS}/cloudnative-pg/postgresql.cnpg.io/v1/ClusterSpec").IClusterSpec["resources"] };
    retentionPolicy?: \`\${number}\${"d" | "w" | "m"}\`;
  };
}`;
const OPTIONS = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022", "--pretty", "false"];

const manifests = [];
for await (const line of createInterface({ input: process.stdin })) manifests.push(JSON.parse(line));

const faults = await Promise.all(manifests.map(valueFault));
for (const [index, fault] of nameFaults()) faults[index] ??= fault;
manifests.forEach(({ kind, metadata }, index) =>
  console.log(faults[index] ? `${kind} ${metadata?.name}: ${faults[index]}` : "valid"),
);

function model({ apiVersion, kind }) {
  const [group, version] = apiVersion.split("/");
  return PACKAGES[group] && `${PACKAGES[group]}/${group}/${version}/${kind}`;
}

async function valueFault(manifest) {
  if (manifest.kind === "ObjectStore") return undefined;
  try {
    const models = await import(model(manifest));
    new models[manifest.kind](manifest).validate();
  } catch (error) {
    return error.message;
  }
}

function nameFaults() {
  const lines = manifests.map((manifest, index) => {
    const { kind } = manifest;
    const type = kind === "ObjectStore" ? STORE.replaceAll("\n", " ") : `import("${model(manifest)}").I${kind}`;
    return `export const m${index}: ${type} = ${JSON.stringify(manifest)};`;
  });
  writeFileSync("manifests.ts", lines.join("\n"));
  try {
    execFileSync("node_modules/.bin/tsc", [...OPTIONS, "manifests.ts"], { encoding: "utf8" });
    return [];
  } catch (error) {
    const said = [...(error.stdout ?? "").matchAll(/^manifests\.ts\((\d+),\d+\): (.*)$/gm)];
    if (!said.length) throw error;
    return said.map(([, line, message]) => [Number(line) - 1, message]);
  }
}

// Validates manifests of custom kinds, one JSON object a line, and says for each how it is.
import { createInterface } from "node:readline";

const PACKAGES = {
  "external-secrets.io": "@kubernetes-models/external-secrets",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "postgresql.cnpg.io": "@kubernetes-models/cloudnative-pg",
};

for await (const line of createInterface({ input: process.stdin })) {
  const manifest = JSON.parse(line);
  const { apiVersion, kind } = manifest;
  const [group, version] = apiVersion.split("/");
  try {
    const models = await import(`${PACKAGES[group]}/${group}/${version}/${kind}`);
    new models[kind](manifest).validate();
    console.log("valid");
  } catch (error) {
    console.log(`${kind} ${manifest.metadata?.name}: ${error.message}`);
  }
}

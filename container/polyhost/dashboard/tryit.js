// "Try it": a request to a model, its answer as clients get it, and the same request as code.

import { post } from "./api.js";
import { bytes, ms, quoted } from "./format.js";

const CHUNK = 0x8000;
const SHOWN_CHARACTERS = 100_000;
const COPIED_MS = 1500;

const $ = (id) => document.getElementById(id);

export class TryIt {
  #container = null;
  #server = null;

  constructor({ failed, answered }) {
    this.failed = failed;
    this.answered = answered;
    $("try-form").addEventListener("submit", (event) => this.#send(event));
    $("try-close").addEventListener("click", () => $("try").close());
    $("try").addEventListener("click", (event) => event.target === $("try") && $("try").close());
    $("try-body").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try-form").requestSubmit();
    });
    $("try-body").addEventListener("input", () => ($("try-file").value = ""));
    $("as-curl").addEventListener("click", () => this.#copy(this.#curl(), $("as-curl")));
    $("as-boto3").addEventListener("click", () => this.#copy(this.#boto3(), $("as-boto3")));
  }

  open(container, server, target) {
    this.#container = container;
    this.#server = server;
    const variant = container.variant ? `, variant ${container.variant}` : "";
    $("try-endpoint").textContent = `Endpoint ${container.endpoint}${variant}`;
    $("try-target").value = container.is_multi_model ? target : "";
    $("try-target-label").hidden = !container.takes_target;
    $("answer").hidden = true;
    $("snippet").hidden = true;
    $("try-error").textContent = "";
    $("try").showModal();
    $("try-body").focus();
  }

  async #send(event) {
    event.preventDefault();
    const send = $("try-send");
    if (send.getAttribute("aria-disabled") === "true") return;
    send.setAttribute("aria-disabled", "true");
    send.textContent = "Sending …";
    $("try-error").textContent = "";
    const begin = performance.now();
    try {
      const answer = await post("/dashboard/invoke", {
        container: this.#container.id,
        target: $("try-target").value,
        content_type: $("try-type").value,
        accept: $("try-accept").value,
        body: encoded(await this.#body()),
      });
      this.#show(answer, performance.now() - begin);
      this.answered();
    } catch (error) {
      $("try-error").textContent = error.message;
      this.failed(error);
    } finally {
      send.setAttribute("aria-disabled", "false");
      send.textContent = "Send";
    }
  }

  async #body() {
    const [file] = $("try-file").files;
    return file ? new Uint8Array(await file.arrayBuffer()) : new TextEncoder().encode($("try-body").value);
  }

  #show(answer, tookMs) {
    const body = Uint8Array.from(atob(answer.body), (character) => character.charCodeAt(0));
    $("answer-status").textContent = answer.status;
    $("answer-status").dataset.is = answer.status < 400 ? "memory" : "error";
    $("answer-facts").textContent = `${ms(answer.ms)} in the server, ${ms(tookMs)} from here, ${bytes(body.length)}`;
    $("answer-body").textContent = shown(body);
    $("answer-headers").replaceChildren(...answer.headers.flatMap(([name, value]) => [worded("dt", name), worded("dd", value)]));
    $("answer").hidden = false;
    $("answer").scrollIntoView({ block: "nearest" });
  }

  async #copy(code, button) {
    $("snippet").textContent = code;
    $("snippet").hidden = false;
    $("snippet").scrollIntoView({ block: "nearest" });
    try {
      await navigator.clipboard.writeText(code);
      const { textContent } = button;
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = textContent), COPIED_MS);
    } catch {
      // Without TLS browsers give no clipboard: it can be copied by hand.
      getSelection().selectAllChildren($("snippet"));
    }
  }

  #address() {
    return `${location.origin}/endpoints/${encodeURIComponent(this.#container.endpoint)}/invocations`;
  }

  #headers() {
    const headers = {
      "X-Amzn-SageMaker-Target-Model": this.#container.takes_target ? $("try-target").value : "",
      "X-Amzn-SageMaker-Target-Variant": this.#container.variant,
      "Content-Type": $("try-type").value,
      Accept: $("try-accept").value,
    };
    return Object.entries(headers).filter(([, value]) => value);
  }

  #curl() {
    const [file] = $("try-file").files;
    const { region, is_locked } = this.#server;
    const signing = `--aws-sigv4 ${quoted(`aws:amz:${region}:sagemaker`)} --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY"`;
    return [
      `curl -sS ${quoted(this.#address())}`,
      ...(is_locked ? [signing] : []),
      ...this.#headers().map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`),
      file ? `--data-binary ${quoted(`@${file.name}`)}` : `--data-raw ${quoted($("try-body").value)}`,
    ].join(" \\\n  ");
  }

  #boto3() {
    const [file] = $("try-file").files;
    const { region, is_locked } = this.#server;
    const names = {
      "X-Amzn-SageMaker-Target-Model": "TargetModel",
      "X-Amzn-SageMaker-Target-Variant": "TargetVariant",
      "Content-Type": "ContentType",
    };
    const fields = this.#headers().map(([name, value]) => `    ${names[name] ?? name}=${JSON.stringify(value)},`);
    const body = file ? `open(${JSON.stringify(file.name)}, "rb")` : JSON.stringify($("try-body").value);
    return [
      "import boto3",
      "",
      "runtime = boto3.client(",
      '    "sagemaker-runtime",',
      `    endpoint_url=${JSON.stringify(location.origin)},`,
      `    region_name=${JSON.stringify(region)},`,
      // boto3 signs what nobody checks here.
      ...(is_locked ? [] : ['    aws_access_key_id="any",', '    aws_secret_access_key="any",']),
      ")",
      "answer = runtime.invoke_endpoint(",
      `    EndpointName=${JSON.stringify(this.#container.endpoint)},`,
      ...fields,
      `    Body=${body},`,
      ")",
      'print(answer["Body"].read())',
    ].join("\n");
  }
}

function encoded(body) {
  let binary = "";
  for (let at = 0; at < body.length; at += CHUNK) binary += String.fromCharCode(...body.subarray(at, at + CHUNK));
  return btoa(binary);
}

function shown(body) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(body);
    return text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}\n… ${bytes(body.length)} in all` : text;
  } catch {
    return `${bytes(body.length)} that are no text`;
  }
}

function worded(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

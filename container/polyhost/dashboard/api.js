// What the page says to its server.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const TIMEOUT_MS = 10_000;
// Loads may take minutes; the server ends what takes too long.
const ACTION_TIMEOUT_MS = 400_000;

export async function get(path, parameters, signal = null) {
  const wanted = Object.entries(parameters).filter(([, value]) => value !== null && value !== "");
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  return await answered(
    await fetch(`${path}?${new URLSearchParams(wanted)}`, {
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    }),
  );
}

export async function post(path, document) {
  return await answered(
    await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Polyhost-Dashboard": "1" },
      body: JSON.stringify(document),
      signal: AbortSignal.timeout(ACTION_TIMEOUT_MS),
    }),
  );
}

async function answered(response) {
  if (response.ok) return await response.json();
  let message = `The server answered ${response.status}.`;
  try {
    const document = await response.json();
    message = document.Message ?? document.message ?? message;
  } catch {
    // A proxy's page, maybe: the status says enough.
  }
  throw new Refused(response.status, message);
}

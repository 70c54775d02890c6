// Keys: in this tab's session storage, sent in a header, never in an address.

const ADMIN = "armature-admin-key";
const API = "armature-api-key";

export function authorization(which = ADMIN) {
  const key = sessionStorage.getItem(which);
  return key ? { authorization: `Bearer ${key}` } : {};
}

export const apiAuthorization = () => authorization(API);
export const apiKey = () => sessionStorage.getItem(API) ?? "";
export const keepApiKey = (key) => (key ? sessionStorage.setItem(API, key) : sessionStorage.removeItem(API));

// Ask for the admin key; `granted()` is called when there is one to try.
export function askForKey(error, granted) {
  const dialog = document.getElementById("access");
  const input = document.getElementById("access-key");
  const had = sessionStorage.getItem(ADMIN) !== null;
  document.getElementById("access-why").textContent =
    error.code === "no_admin_key"
      ? "This gateway has no admin key, so only this very machine may look. Start it with --admin-key, or with " +
        "ARMATURE_ADMIN_KEY set, and enter that here."
      : had
        ? "That key does not open the console. It is the one that the gateway was started with, as --admin-key or " +
          "ARMATURE_ADMIN_KEY."
        : "The key that this gateway was started with, as --admin-key or ARMATURE_ADMIN_KEY.";
  sessionStorage.removeItem(ADMIN);
  input.value = "";
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.onclose = () => {
    sessionStorage.setItem(ADMIN, input.value.trim());
    input.value = "";
    granted();
  };
  if (!dialog.open) dialog.showModal();
}

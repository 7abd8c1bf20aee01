"use strict";
// A button beside each <pre class="copy"> puts its text on the clipboard. Without a clipboard there is no button.
(() => {
  function renew(root) {
    root.querySelectorAll("pre.copy").forEach((block) => {
      if (!navigator.clipboard) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 2000);
      });
      block.before(button);
    });
  }

  window.appliance = { ...window.appliance, copy: { renew } };
  renew(document);
})();

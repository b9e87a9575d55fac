/* The kill switch page: choose what to stop, see how much runs, throw; then watch the workers acknowledge. */
"use strict";

(() => {
    const POLL_MS = 300;
    const POLL_LATER_MS = 3000;
    const POLL_EAGERLY_FOR_MS = 30000;
    const SEARCH_AFTER_MS = 150;
    const REACH_EVERY_MS = 1000;

    const page = document.getElementById("tg-kill");
    const plural = (number, word) => `${number.toLocaleString("en-US")} ${word}${number === 1 ? "" : "s"}`;

    async function ask(url, parameters) {
        const response = await fetch(parameters ? `${url}?${new URLSearchParams(parameters)}` : url, {
            headers: { Accept: "application/json" },
        });
        const isJson = response.headers.get("Content-Type")?.startsWith("application/json");
        if (!isJson) throw new Error(response.redirected ? "you are signed out" : `status ${response.status}`);
        const answer = await response.json();
        if (answer.error) throw new Error(answer.error);
        return answer;
    }

    // The dialog in which a switch is thrown

    const dialog = document.getElementById("tg-throw");
    const form = dialog.querySelector("form");
    const part = (name) => dialog.querySelector(`[data-${name}]`);
    let reachTimer, searchTimer, searchNumber = 0;

    function open(scope, title, target = "") {
        form.elements.scope.value = scope;
        part("title").textContent = scope === "global" ? "Stop everything" : `Stop ${title.toLowerCase()}`;
        part("picker").hidden = scope === "global";
        part("search").value = "";
        part("options").replaceChildren();
        choose(target);
        dialog.showModal();
        if (scope === "global") form.elements.reason.focus();
        else if (target) findPreset(scope, target);
        else search();
    }

    function choose(target) {
        form.elements.target.value = target;
        const isReady = form.elements.scope.value === "global" || Boolean(target);
        part("submit").disabled = !isReady;
        part("reach").textContent = isReady ? "Counting what runs now…" : "Choose what to stop.";
        clearTimeout(reachTimer);
        if (isReady) showReach();
    }

    async function showReach() {
        const asked = { scope: form.elements.scope.value, target: form.elements.target.value };
        let text;
        try {
            const reach = await ask(page.dataset.reachUrl, asked);
            const running = reach.live_requests
                ? `It cuts what runs now: ${plural(reach.live_requests, "request")} on ${plural(reach.workers, "worker")}.`
                : "Nothing of it runs now.";
            text = `${running} No further request is admitted.`;
        } catch (error) {
            text = `How many requests run now is not known (${error.message}). No further request is admitted.`;
        }
        if (!dialog.open || asked.target !== form.elements.target.value || asked.scope !== form.elements.scope.value) return;
        part("reach").textContent = text;
        reachTimer = setTimeout(showReach, REACH_EVERY_MS);
    }

    async function search() {
        const number = ++searchNumber;
        try {
            const answer = await ask(page.dataset.targetsUrl, { scope: form.elements.scope.value, q: part("search").value });
            if (number === searchNumber) showOptions(answer.targets);
        } catch (error) {
            part("reach").textContent = `The search failed: ${error.message}.`;
        }
    }

    async function findPreset(scope, target) {
        part("search").value = target;
        showOptions([{ value: target, name: target, note: scope }]);
        part("options").firstChild.setAttribute("aria-pressed", "true");
        form.elements.reason.focus();
    }

    function showOptions(targets) {
        part("options").replaceChildren(...targets.map((target) => {
            const option = document.createElement("button");
            option.type = "button";
            const note = document.createElement("span");
            note.className = "tg-note";
            note.textContent = target.note;
            option.append(target.name, note);
            option.addEventListener("click", () => {
                for (const other of part("options").children) other.removeAttribute("aria-pressed");
                option.setAttribute("aria-pressed", "true");
                choose(target.value);
                form.elements.reason.focus();
            });
            return option;
        }));
        if (!targets.length) part("reach").textContent = "Nothing is called like that.";
    }

    part("search").addEventListener("input", () => {
        choose("");
        clearTimeout(searchTimer);
        searchTimer = setTimeout(search, SEARCH_AFTER_MS);
    });
    dialog.addEventListener("close", () => clearTimeout(reachTimer));
    form.addEventListener("submit", () => { part("submit").disabled = true; });
    for (const button of document.querySelectorAll("button[data-scope]")) {
        button.addEventListener("click", () => open(button.dataset.scope, button.dataset.title));
        button.disabled = false; // Not before: what is pressed while the page still loads would do nothing.
    }

    // The dialog in which one is lifted

    const lifting = document.getElementById("tg-lift");
    for (const button of document.querySelectorAll("button[data-lift]")) {
        button.addEventListener("click", () => {
            lifting.querySelector("form").action = button.dataset.lift;
            lifting.querySelector("[data-title]").textContent = `Lift ${button.dataset.name}`;
            lifting.showModal();
        });
        button.disabled = false;
    }
    for (const button of document.querySelectorAll("dialog [data-close]")) {
        button.addEventListener("click", () => button.closest("dialog").close());
    }

    // Acknowledgements

    const acks = document.getElementById("tg-acks");

    function cell(text, className = "") {
        const made = document.createElement("td");
        made.textContent = text;
        made.className = className;
        return made;
    }

    function numberCell(number) {
        const made = cell(number === null ? "–" : Math.round(number).toLocaleString("en-US"));
        made.dataset.value = number ?? "";
        return made;
    }

    function showAcks(answer) {
        const parts = [`${answer.acknowledged} of ${plural(answer.expected, "worker")}`, `${plural(answer.streams_cut, "stream")} cut`];
        if (answer.elapsed_ms !== null) parts.push(`${Math.round(answer.elapsed_ms)} ms`);
        document.getElementById("tg-summary").textContent = answer.expected ? parts.join(", ") : "No worker is alive: nothing runs.";
        document.getElementById("tg-ack-rows").replaceChildren(...answer.workers.map((worker) => {
            const row = document.createElement("tr");
            const hasAnswered = worker.elapsed_ms !== null;
            const state = hasAnswered ? ["acknowledged", "tg-good"] : ["waiting", "tg-warn"];
            row.append(
                cell(worker.worker, "tg-mono"), cell(worker.host), numberCell(worker.streams_cut),
                numberCell(worker.elapsed_ms), cell(...state),
            );
            return row;
        }));
    }

    async function watch(beganAt) {
        let isComplete = false;
        try {
            const answer = await ask(acks.dataset.url);
            showAcks(answer);
            isComplete = answer.is_complete;
        } catch (error) {
            document.getElementById("tg-summary").textContent = `The workers cannot be asked: ${error.message}.`;
        }
        const isEager = !isComplete && Date.now() - beganAt < POLL_EAGERLY_FOR_MS;
        setTimeout(() => watch(beganAt), isEager ? POLL_MS : POLL_LATER_MS);
    }

    if (acks) watch(Date.now());
    const preset = page.dataset;
    const presetButton = preset.presetScope && document.querySelector(`button[data-scope="${CSS.escape(preset.presetScope)}"]`);
    if (presetButton) open(preset.presetScope, presetButton.dataset.title, preset.presetTarget);
})();

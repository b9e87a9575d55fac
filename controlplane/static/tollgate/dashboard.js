/* The dashboard: draws the charts from the page's JSON, sorts tables, sends the filter form as soon as it changes. */
"use strict";

(() => {
    const COLOURS = ["#7c3aed", "#0ea5e9", "#10b981", "#f59e0b", "#ef4444", "#ec4899", "#6366f1"];
    const OTHERS = "#94a3b8";
    const REQUESTS = "#0ea5e9";
    const ERRORS = "#ef4444";
    const PERCENTILES = { p50: "#10b981", p95: "#f59e0b", p99: "#ef4444" };

    const money = (value) => value.toLocaleString("en-US", {
        style: "currency", currency: "USD", maximumFractionDigits: Math.abs(value) < 1 && value !== 0 ? 6 : 2,
    });
    const roundMoney = (value) => `$${value.toLocaleString("en-US", { maximumSignificantDigits: 3 })}`;
    const short = (value) => Intl.NumberFormat("en-US", { notation: "compact" }).format(value);
    const duration = (value) => (value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);

    const percent = (value) => `${(100 * value).toFixed(value && value < 0.1 ? 1 : 0)} %`;

    function labels(data) {
        const parts = {
            hour: { hour: "2-digit", minute: "2-digit", hour12: false },
            day: { day: "numeric", month: "short" },
            month: { month: "short", year: "numeric" },
        }[data.unit];
        const format = new Intl.DateTimeFormat("en-GB", { ...parts, timeZone: "UTC" });
        return data.starts.map((start) => format.format(new Date(start)));
    }

    function options(format, { stacked = false, legend = true } = {}) {
        const isDark = document.documentElement.classList.contains("dark");
        const text = isDark ? "#9ca3af" : "#6b7280";
        const line = isDark ? "rgb(255 255 255 / 8%)" : "rgb(0 0 0 / 7%)";
        return {
            animation: false,
            maintainAspectRatio: false,
            interaction: { mode: "index", intersect: false },
            plugins: {
                legend: { display: legend, align: "end", labels: { color: text, boxWidth: 8, boxHeight: 8, usePointStyle: true } },
                tooltip: {
                    filter: (item) => item.raw !== null && item.raw !== 0,
                    itemSort: (a, b) => b.raw - a.raw,
                    callbacks: { label: (item) => ` ${item.dataset.label}: ${format(item.raw)}` },
                },
            },
            scales: {
                x: { stacked, border: { display: false }, grid: { display: false }, ticks: { color: text, maxRotation: 0, autoSkipPadding: 16 } },
                y: { stacked, beginAtZero: true, border: { display: false }, grid: { color: line }, ticks: { color: text, maxTicksLimit: 6, callback: format } },
            },
        };
    }

    function draw(data) {
        const charts = [];
        const names = labels(data);
        const add = (id, type, datasets, chosen) => {
            const canvas = document.getElementById(id);
            if (canvas) charts.push(new Chart(canvas, { type, data: { labels: names, datasets }, options: chosen }));
        };
        Chart.defaults.font.family = "Inter, sans-serif";
        const spend = data.spend.map((series, index) => ({
            label: series.name,
            data: series.values,
            backgroundColor: COLOURS[index] ?? OTHERS,
            maxBarThickness: 36,
        }));
        const bars = options(money, { stacked: true, legend: false });
        bars.scales.y.ticks.callback = roundMoney;
        add("tg-spend", "bar", spend, bars);
        const requests = [{ label: "Requests", data: data.requests, borderColor: REQUESTS, backgroundColor: `${REQUESTS}22`, fill: true }];
        const chosen = options(short);
        if (data.errors) {
            // Errors are few beside requests: their share has a scale of its own.
            const shares = data.errors.map((number, index) => (data.requests[index] ? number / data.requests[index] : null));
            requests.push({ label: "Errors", data: shares, yAxisID: "share", borderColor: ERRORS, backgroundColor: ERRORS });
            chosen.scales.share = { ...chosen.scales.y, position: "right", grid: { display: false }, suggestedMax: 0.05,
                ticks: { ...chosen.scales.y.ticks, callback: percent } };
            chosen.plugins.tooltip.callbacks.label = ({ dataset, raw }) => ` ${dataset.label}: ${(dataset.yAxisID ? percent : short)(raw)}`;
        }
        add("tg-requests", "line", requests.map(asLine), chosen);
        if (data.latency) {
            const lines = Object.entries(data.latency).map(([name, values]) => ({
                label: name, data: values, borderColor: PERCENTILES[name], backgroundColor: PERCENTILES[name], spanGaps: true,
            }));
            add("tg-latency", "line", lines.map(asLine), options(duration));
        }
        return charts;
    }

    // A line through one point is nothing to see.
    const asLine = (dataset) => ({ ...dataset, borderWidth: 2, pointRadius: dataset.data.length > 1 ? 0 : 4, tension: 0.25 });

    function colourDots() {
        for (const dot of document.querySelectorAll(".tg-dot")) {
            dot.style.background = COLOURS[Number(dot.dataset.series)] ?? OTHERS;
        }
    }

    function makeSortable(table) {
        const heads = [...table.tHead.rows[0].cells];
        heads.forEach((head, column) => {
            if (!head.textContent.trim()) return;
            const button = document.createElement("button");
            button.type = "button";
            button.textContent = head.textContent;
            head.replaceChildren(button);
            button.addEventListener("click", () => {
                const isNumber = "number" in head.dataset;
                const first = isNumber ? "descending" : "ascending";
                const second = isNumber ? "ascending" : "descending";
                const direction = head.getAttribute("aria-sort") === first ? second : first;
                heads.forEach((other) => other.removeAttribute("aria-sort"));
                head.setAttribute("aria-sort", direction);
                const value = (row) => (isNumber ? Number(row.cells[column].dataset.value) || 0 : row.cells[column].textContent.trim());
                const compare = (a, b) => (isNumber ? value(a) - value(b) : value(a).localeCompare(value(b)));
                const rows = [...table.tBodies[0].rows].sort((a, b) => (direction === "ascending" ? compare(a, b) : compare(b, a)));
                table.tBodies[0].append(...rows);
            });
        });
    }

    function sendOnChange(form) {
        const send = () => {
            // Empty fields say nothing: they stay out of the URL.
            for (const field of form.elements) field.disabled = field.disabled || (field.name && !field.value);
            form.requestSubmit();
        };
        form.addEventListener("change", (event) => {
            if (event.target.type === "date") {
                document.getElementById("tg-range").value = "custom";
                if (!form.elements.from.value || !form.elements.to.value) return;
            }
            if (event.target.name === "team") form.elements.project.value = "";
            send();
        });
    }

    // A phone has no room for them before the figures.
    if (matchMedia("(max-width: 640px)").matches) document.querySelector(".tg-more").open = false;
    colourDots();
    document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
    sendOnChange(document.getElementById("tg-filters"));

    const data = JSON.parse(document.getElementById("tg-chart").textContent);
    let charts = draw(data);
    // The theme switches a class on the root; what is drawn on a canvas does not follow by itself.
    new MutationObserver(() => {
        charts.forEach((chart) => chart.destroy());
        charts = draw(data);
    }).observe(document.documentElement, { attributeFilter: ["class"] });
})();

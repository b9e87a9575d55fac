/* A budget's page: what was spent in each part of its window as bars, the sum as a line, and the amount it must stay under. */
"use strict";

(() => {
    const BARS = "#0ea5e9";
    const SUM = "#7c3aed";
    const CAP = "#ef4444";

    const data = JSON.parse(document.getElementById("tg-budget-chart").textContent);
    const canvas = document.getElementById("tg-budget");
    const figure = data.unit === "usd"
        ? (value) => value.toLocaleString("en-US", { style: "currency", currency: "USD", maximumFractionDigits: Math.abs(value) < 1 && value !== 0 ? 6 : 2 })
        : (value) => Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 }).format(value);

    function labels() {
        const parts = data.isLong ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit", hour12: false };
        const format = new Intl.DateTimeFormat("en-GB", { ...parts, timeZone: data.timeZone });
        return data.starts.map((start) => format.format(new Date(start)));
    }

    function draw() {
        const isDark = document.documentElement.classList.contains("dark");
        const text = isDark ? "#9ca3af" : "#6b7280";
        const line = isDark ? "rgb(255 255 255 / 8%)" : "rgb(0 0 0 / 7%)";
        let sum = 0;
        const sums = data.spent.map((spent) => (sum += spent));
        const asLine = { type: "line", pointRadius: 0, borderWidth: 2, tension: 0 };
        const datasets = [
            { ...asLine, label: "Sum", data: sums, borderColor: SUM, backgroundColor: SUM },
            { label: "Spent", data: data.spent, backgroundColor: BARS, maxBarThickness: 36 },
        ];
        if (data.cap !== null) {
            datasets.push({ ...asLine, label: "Amount", data: sums.map(() => data.cap), borderColor: CAP, backgroundColor: CAP, borderDash: [6, 4] });
        }
        Chart.defaults.font.family = "Inter, sans-serif";
        return new Chart(canvas, {
            type: "bar",
            data: { labels: labels(), datasets },
            options: {
                animation: false,
                maintainAspectRatio: false,
                interaction: { mode: "index", intersect: false },
                plugins: {
                    legend: { align: "end", labels: { color: text, boxWidth: 8, boxHeight: 8, usePointStyle: true } },
                    tooltip: { callbacks: { label: (item) => ` ${item.dataset.label}: ${figure(item.raw)}` } },
                },
                scales: {
                    x: { border: { display: false }, grid: { display: false }, ticks: { color: text, maxRotation: 0, autoSkipPadding: 16 } },
                    y: { beginAtZero: true, border: { display: false }, grid: { color: line }, ticks: { color: text, maxTicksLimit: 6, callback: figure } },
                },
            },
        });
    }

    if (canvas) {
        let chart = draw();
        new MutationObserver(() => {
            chart.destroy();
            chart = draw();
        }).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });
    }
})();

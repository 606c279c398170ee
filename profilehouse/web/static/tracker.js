/*
 * Profilehouse tracker: sends what visitors of a web page do to the collector.
 *
 *   <script src="https://collector.example/tracker.js"></script>
 *   <script>
 *     profilehouse.init({ endpoint: 'https://collector.example/events', consent: true });
 *   </script>
 *   <article data-content-id="c42" data-category="CHEESE">...</article>
 *
 * Page views, and clicks and impressions of elements with data-content-id, are sent by themselves;
 * all else by track(). docs/collector.md says more.
 *
 * With consent, who the visitor is and what is still to be sent are kept in localStorage. Without
 * it nothing is stored, events say consent: false, and carry an id that ends with the page.
 */
(function () {
  'use strict';

  const CONTRACT_VERSION = '1.0.0';
  const SESSION_IDLE_MS = 30 * 60 * 1000;
  const SEND_AFTER_MS = 20;
  const GIVE_UP_MS = 30 * 1000;
  const FIRST_RETRY_MS = 1000;
  const LAST_RETRY_MS = 60 * 1000;
  const BATCH_EVENTS = 50;
  const BATCH_BYTES = 60000; // browsers take 64 KiB from a page that is left
  const QUEUE_EVENTS = 1000; // the oldest go first
  const TEXT_LENGTH = 2000;
  const NEVER_TAKEN = [400, 413, 415];

  const VISITOR = 'profilehouse.visitor';
  const QUEUES = 'profilehouse.queue.';
  const OWN_QUEUE = QUEUES + newId(); // each page has its own, so that tabs do not overwrite it

  let endpoint = null;
  let consent = false;
  let visitor = { anonymous_id: newId() };
  let queue = [];
  let inFlight = []; // the events of the queue that are on their way
  let oneByOne = false; // after a batch was refused, to find the event that was meant
  let failures = 0;
  let timer = null;
  let timerDue = Infinity;

  // Storage. Browsers may forbid it, or it may be full: then memory has to do.

  function load(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch (error) {
      return null;
    }
  }

  function store(key, value) {
    try {
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, toJson(value));
    } catch (error) {
      // see above
    }
  }

  function storedQueues() {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(QUEUES));
    } catch (error) {
      return [];
    }
  }

  function saveQueue() {
    if (consent) store(OWN_QUEUE, queue.length ? queue : null);
  }

  /* What pages before this one, or other tabs, have not sent. Sent twice it counts once. */
  function adoptQueues() {
    const keys = storedQueues().filter((key) => key !== OWN_QUEUE);
    keys.forEach((key) => {
      const left = load(key);
      if (Array.isArray(left)) queue = left.concat(queue);
    });
    queue = queue.slice(-QUEUE_EVENTS);
    saveQueue();
    keys.forEach((key) => store(key, null));
  }

  function forget() {
    queue = queue.filter((each) => !each.consent);
    storedQueues().forEach((key) => store(key, null));
    store(VISITOR, null);
  }

  // Who.

  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  }

  /* The visitor as all tabs know it, in a session that goes on or begins now. */
  function present() {
    const now = Date.now();
    if (consent) visitor = load(VISITOR) || visitor;
    if (!visitor.session_id || now - visitor.active_at > SESSION_IDLE_MS) {
      visitor.session_id = newId();
    }
    visitor.active_at = now;
    if (consent) store(VISITOR, visitor);
    return visitor;
  }

  // What.

  function event(type, fields) {
    const who = present();
    const identity = { anonymous_id: who.anonymous_id };
    if (consent) {
      identity.session_id = who.session_id;
      if (who.user_id) identity.user_id = who.user_id;
    }
    return Object.assign({}, fields, identity, {
      event_id: newId(),
      event_type: type,
      occurred_at: new Date().toISOString(),
      url: address(location.href),
      referrer: address(document.referrer),
      device: device(),
      consent: consent,
      contract_version: CONTRACT_VERSION,
    });
  }

  /* Without query and fragment: they may carry names, searches or secrets. */
  function address(url) {
    return url ? url.split(/[?#]/)[0].slice(0, TEXT_LENGTH) : undefined;
  }

  function device() {
    if (!matchMedia('(pointer: coarse)').matches) return 'computer';
    return Math.min(screen.width, screen.height) < 600 ? 'phone' : 'tablet';
  }

  /* Half of a surrogate pair, as cutting a text leaves it, is not valid in JSON. */
  function toJson(value) {
    return JSON.stringify(value, (key, each) =>
      typeof each === 'string' ? each.replace(/[\ud800-\udfff]/gu, '\ufffd') : each
    );
  }

  // Sending.

  function sendAfter(milliseconds) {
    const due = Date.now() + milliseconds;
    if (timer !== null && timerDue <= due) return;
    clearTimeout(timer);
    timerDue = due;
    timer = setTimeout(send, milliseconds);
  }

  function stopTimer() {
    clearTimeout(timer);
    timer = null;
  }

  /* The first events of some, as many as go together; one at least. */
  function firstBatch(events) {
    const batch = [];
    let size = 0;
    for (const each of events.slice(0, oneByOne ? 1 : BATCH_EVENTS)) {
      size += new Blob([toJson(each)]).size + 2;
      if (batch.length && size > BATCH_BYTES) break;
      batch.push(each);
    }
    return batch;
  }

  function send() {
    stopTimer();
    if (inFlight.length || !queue.length) return;
    const batch = firstBatch(queue);
    const body = new Blob([toJson(batch)], { type: 'text/plain' });
    const abort = new AbortController();
    const patience = setTimeout(() => abort.abort(), GIVE_UP_MS);
    inFlight = batch;
    fetch(endpoint, {
      method: 'POST',
      body: body,
      credentials: 'omit',
      keepalive: body.size <= BATCH_BYTES,
      signal: abort.signal,
    })
      .then(
        (answer) => settle(batch, answer.status, Number(answer.headers.get('Retry-After')) || 0),
        () => settle(batch, 0, 0)
      )
      .then(() => clearTimeout(patience));
  }

  function settle(batch, status, retryAfter) {
    inFlight = [];
    const taken = status >= 200 && status < 300;
    const refused = NEVER_TAKEN.includes(status);
    if (taken || (refused && batch.length === 1)) {
      if (refused) console.warn('profilehouse: an event was refused with ' + status, batch[0]);
      queue = queue.filter((each) => !batch.includes(each));
      saveQueue();
      failures = 0;
      oneByOne = oneByOne && queue.length > 0;
      sendAfter(0);
    } else if (refused) {
      oneByOne = true;
      sendAfter(0);
    } else {
      const backoff = Math.min(FIRST_RETRY_MS * Math.pow(2, failures), LAST_RETRY_MS);
      failures += 1;
      stopTimer();
      sendAfter(Math.max(retryAfter * 1000, backoff * (0.5 + Math.random() / 2)));
    }
  }

  /* The page may go: what waits is given to the browser. With consent it also stays stored. */
  function sendLast() {
    let left = queue.filter((each) => !inFlight.includes(each));
    while (left.length) {
      const batch = firstBatch(left);
      const body = new Blob([toJson(batch)], { type: 'text/plain' });
      if (!navigator.sendBeacon(endpoint, body)) return;
      left = left.slice(batch.length);
    }
  }

  // Watching.

  const shown = new Set();
  const half = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const enough =
          entry.intersectionRatio >= 0.5 || entry.intersectionRect.height >= innerHeight / 2;
        const content = contentOf(entry.target);
        if (entry.isIntersecting && enough && !shown.has(content.content_id)) {
          shown.add(content.content_id);
          track('impression', content);
        }
      }
    },
    { threshold: [0, 0.1, 0.2, 0.3, 0.4, 0.5] }
  );

  function contentOf(element) {
    const labelled = element.closest('[data-category]');
    return {
      content_id: element.dataset.contentId,
      campaign_id: element.dataset.campaignId,
      category: labelled ? labelled.dataset.category : undefined,
    };
  }

  function watch(node) {
    if (!(node instanceof Element)) return;
    if (node.matches('[data-content-id]')) half.observe(node);
    node.querySelectorAll('[data-content-id]').forEach((each) => half.observe(each));
  }

  function watchPage() {
    new MutationObserver((changes) =>
      changes.forEach((change) => change.addedNodes.forEach(watch))
    ).observe(document.documentElement, { childList: true, subtree: true });
    document.addEventListener(
      'click',
      (click) => {
        const element = click.target.closest('[data-content-id]');
        if (element) track('click', contentOf(element));
      },
      true
    );
    addEventListener('pagehide', sendLast);
    addEventListener('online', send);
    addEventListener('storage', () => {
      if (consent && load(VISITOR) === null) setConsent(false); // withdrawn in another tab
    });
    document.addEventListener('visibilitychange', () => {
      if (document.hidden && failures === 0) send();
    });
  }

  // The door.

  /*
   * Begin. Options:
   *   endpoint: address of the collector's /events
   *   consent: whether the visitor agreed to be profiled; left out where that is not known yet,
   *     which counts as no, but what is stored stays until consent() says more
   */
  function init(options) {
    const again = endpoint !== null;
    endpoint = options.endpoint;
    consent = options.consent === true;
    if (consent) adoptQueues();
    else if (options.consent === false) forget();
    if (!again) watchPage();
    page();
  }

  /* The visitor sees another page. For sites that change theirs without loading it. */
  function page() {
    track('page_view');
    shown.clear();
    half.disconnect();
    watch(document.documentElement);
  }

  /*
   * Something happened: type is search, add_to_cart, purchase, custom or another of the contract's;
   * fields may be content_id, category, campaign_id, order_id, value_cents and properties.
   */
  function track(type, fields) {
    if (endpoint === null) {
      console.warn('profilehouse: track() before init() does nothing');
      return;
    }
    queue.push(event(type, fields));
    queue = queue.slice(-QUEUE_EVENTS);
    saveQueue();
    if (timer === null && !inFlight.length) sendAfter(SEND_AFTER_MS);
  }

  /* From now on the visitor is this user. Safe to call on every page. */
  function login(userId) {
    const user = String(userId);
    if (consent) visitor = load(VISITOR) || visitor;
    if (visitor.user_id === user) return;
    if (visitor.user_id) logout();
    visitor.user_id = user;
    if (!consent) return;
    store(VISITOR, visitor);
    track('custom', { properties: { name: 'login' } });
  }

  /* From now on nobody is logged in; whoever comes next has a session of their own. */
  function logout() {
    if (consent) visitor = load(VISITOR) || visitor;
    delete visitor.user_id;
    delete visitor.session_id;
    if (consent) store(VISITOR, visitor);
  }

  /*
   * The visitor agrees: the page is viewed once more, with consent. Or does not, or no longer: what
   * is stored, and what was to be sent with consent, is deleted.
   */
  function setConsent(agreed) {
    if (!agreed) forget();
    if (agreed === consent) return;
    const userId = visitor.user_id;
    consent = agreed;
    visitor = (agreed && load(VISITOR)) || { anonymous_id: newId() };
    if (agreed) adoptQueues();
    if (userId) login(userId);
    if (agreed && endpoint !== null) page();
  }

  /* Who the visitor is to the collector. */
  function identity() {
    if (!consent) return { anonymous_id: visitor.anonymous_id };
    visitor = load(VISITOR) || visitor;
    const { anonymous_id, session_id, user_id } = visitor;
    return { anonymous_id, session_id, user_id };
  }

  window.profilehouse = { init, page, track, login, logout, consent: setConsent, identity };
})();
